"""What every command shares: options, output, and the way to the daemon or its data."""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click
import orjson

from mailserverd.config.load import ConfigError
from mailserverd.core.errors import Kind, MailError
from mailserverd.net import control
from mailserverd.settings import DEFAULT_PATH, Settings, read

F = TypeVar("F", bound=Callable[..., Any])
SYSEXITS = {
    Kind.NOT_FOUND: os.EX_NOUSER,
    Kind.NO_SUCH_USER: os.EX_NOUSER,
    Kind.INVALID: os.EX_USAGE,
    Kind.ALREADY_EXISTS: os.EX_CANTCREAT,
    Kind.FORBIDDEN: os.EX_NOPERM,
    Kind.UNAVAILABLE: os.EX_TEMPFAIL,
    Kind.STORAGE_FULL: os.EX_IOERR,
    Kind.INTERNAL: os.EX_SOFTWARE,
}


def options(function: F) -> F:
    """Add ``--config FILE`` and ``--json`` to a command."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--config",
            "config",
            default=lambda: os.environ.get("MAILSERVERD_CONFIG") or DEFAULT_PATH,
            show_default=DEFAULT_PATH,
            help="The configuration file.",
        ),
    ):
        function = decorate(function)
    return function


def dry_run(function: F) -> F:
    """Add ``--dry-run`` to a command that changes something."""
    return click.option(
        "--dry-run", is_flag=True, help="Say what would be done, change nothing."
    )(function)


def settings(config: str) -> Settings:
    """Read the configuration or leave with every mistake on standard error."""
    try:
        return read(config)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"mailserverd: {problem}", err=True)
        sys.exit(os.EX_CONFIG)


def run(
    config: str,
    command: str,
    *,
    as_json: bool,
    show: Callable[[Any], None],
    add: dict[str, Any] | None = None,
    **args: Any,
) -> Any:
    """Run a command in the daemon, or on its data when none runs; show the result.

    ``add`` is joined to a JSON result: what only this side knows.  Returns the
    result; a refusal ends the process with its sysexits code.
    """
    chosen = settings(config)
    try:
        result = asyncio.run(_anywhere(chosen, command, args))
    except MailError as error:
        fail(error, as_json=as_json)
    if as_json:
        emit({**result, **add} if add else result)
    else:
        if args.get("dry_run"):
            click.echo("dry run, nothing is changed; it would say:")
        show(result)
    return result


def emit(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode())


def fail(error: MailError, *, as_json: bool) -> NoReturn:
    """Print a refusal and leave with its sysexits code."""
    if as_json:
        emit({"error": {"kind": error.kind.name, "text": error.text}})
    else:
        click.echo(f"mailserverd: {error.text}", err=True)
    other = os.EX_TEMPFAIL if error.temporary else os.EX_DATAERR
    sys.exit(SYSEXITS.get(error.kind, other))


async def _anywhere(chosen: Settings, command: str, args: dict[str, Any]) -> Any:
    socket = pathlib.Path(chosen.server.data_dir) / "control.sock"
    try:
        return await control.call(socket, command, args, _progress())
    except (FileNotFoundError, ConnectionRefusedError):
        pass  # no daemon: work on its data directly
    except PermissionError:
        raise MailError(
            Kind.FORBIDDEN, f"{socket} belongs to another user: run as that user"
        ) from None
    from mailserverd.app.offline import offline  # noqa: PLC0415 - heavy imports

    async with offline(chosen) as handler:
        return await handler(command, args, _progress())


def _progress() -> Callable[[dict[str, Any]], None]:
    """Show progress on a terminal's standard error; elsewhere stay silent."""
    if not sys.stderr.isatty():
        return lambda _state: None
    from rich.console import Console  # noqa: PLC0415 - only when shown

    status = Console(stderr=True)

    def show(state: dict[str, Any]) -> None:
        status.print(
            "  ".join(f"{key} {value}" for key, value in state.items()), end="\r"
        )

    return show


def table(title: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print rows as an aligned table."""
    from rich.console import Console  # noqa: PLC0415 - only when shown
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown = Table(box=None, pad_edge=False)
    for name in title:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))  # as it is: no markup
    width = None if sys.stdout.isatty() else 4096
    Console(width=width).print(shown)
