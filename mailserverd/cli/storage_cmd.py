"""``mailserverd storage status | migrate | check``."""

from __future__ import annotations

import sys
from typing import Any

import click

from mailserverd.cli import common


@click.group("storage")
def group() -> None:
    """Databases and blobs: versions, sizes, faults."""


@group.command()
@common.options
def status(config: str, as_json: bool) -> None:
    """Show every database: version, size, accounts."""

    def show(rows: list[dict[str, Any]]) -> None:
        keys = ("name", "url", "schema", "size", "accounts", "problem")
        common.table(
            tuple(key.upper() for key in keys),
            [tuple(row.get(key, "") for key in keys) for row in rows],
        )

    common.run(config, "storage.status", as_json=as_json, show=show)


@group.command()
@common.dry_run
@common.options
def migrate(dry_run: bool, config: str, as_json: bool) -> None:
    """Make empty databases' schemas, bring older ones to this release."""

    def show(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            before = row["before"] or "none"
            click.echo(f"{row['name']:12} {before} -> {row['after']}")

    common.run(config, "storage.migrate", as_json=as_json, show=show, dry_run=dry_run)


@group.command()
@common.options
def check(config: str, as_json: bool) -> None:
    """Verify counters, references, threads and every blob's checksum."""

    def show(result: dict[str, Any]) -> None:
        for line in result["faults"]:
            click.echo(line, err=True)
        for line in result["notes"]:
            click.echo(f"note: {line}")
        click.echo(
            f"{result['accounts']} accounts, {result['emails']} emails, "
            f"{result['blobs']} blobs checked: {len(result['faults'])} faults"
        )

    result = common.run(config, "storage.check", as_json=as_json, show=show)
    if result["faults"]:
        sys.exit(1)
