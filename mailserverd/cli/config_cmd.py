"""``mailserverd config check | example | diff``."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

import click

from mailserverd.cli import common
from mailserverd.config.example import example, toml
from mailserverd.config.load import ConfigError
from mailserverd.config.schema import REQUIRED
from mailserverd.core.urls import shown
from mailserverd.settings import Settings, read

INTRO = (
    "mailserverd.toml: every key with its meaning and default. Files in conf.d/*.toml "
    'beside it override it key by key. Any value may be { file = "path" }.'
)


@click.group("config")
def group() -> None:
    """Check, show and compare the configuration."""


@group.command()
@common.options
def check(config: str, as_json: bool) -> None:
    """Report every mistake with file, line and what would be right."""
    try:
        read(config)
    except ConfigError as error:
        if as_json:
            common.emit(
                {
                    "ok": False,
                    "problems": [dataclasses.asdict(p) for p in error.problems],
                }
            )
        else:
            for problem in error.problems:
                click.echo(str(problem), err=True)
        sys.exit(os.EX_CONFIG)
    if as_json:
        common.emit({"ok": True, "problems": []})
    else:
        click.echo(f"{config}: ok")


@group.command("example")
@common.options
def example_(config: str, as_json: bool) -> None:
    """Print a commented example file."""
    from mailserverd.cli.init import PUBLIC_PORTS  # noqa: PLC0415 - heavy imports

    del config  # whatever it says
    keys = ("protocol", "address", "tls")
    others = [dict(zip(keys, row, strict=True)) for row in PUBLIC_PORTS[1:]]
    text = example(Settings, INTRO, {"listener": others})
    if as_json:
        common.emit({"text": text})
    else:
        click.echo(text, nl=False)


@group.command()
@common.options
def diff(config: str, as_json: bool) -> None:
    """Print what differs from the defaults."""
    found = dict(_differences(common.settings(config)))
    if as_json:
        common.emit(found)
    else:
        for key, value in found.items():
            click.echo(f"{key} = {toml(value)}")


def _differences(settings: Settings) -> Any:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, tuple):
            for number, item in enumerate(value, 1):
                yield from _fields(f"{field.name}[{number}]", item)
        else:
            yield from _fields(field.name, value)


def _fields(prefix: str, instance: Any) -> Any:
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if field.default is REQUIRED or value != field.default:
            yield f"{prefix}.{field.name}", _shown(value)


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_shown, value))
    return shown(value) if isinstance(value, str) else value
