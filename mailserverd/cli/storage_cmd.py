"""``mailserverd storage status | migrate | check``."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from mailserverd.cli import common, storage_blobs


@click.group("storage")
def group() -> None:
    """Databases and blobs: versions, sizes, faults."""


group.add_command(storage_blobs.group)


@group.command()
@common.options
def status(config: str, as_json: bool) -> None:
    """Show every database: version, size, accounts, and what is wrong with it.

    Exits with 1 when something is wrong.
    """

    def show(rows: list[dict[str, Any]]) -> None:
        keys = ("name", "engine", "schema", "size", "accounts", "uuid", "url")
        cells = [[_cell(row.get(key)) for key in keys] for row in rows]
        common.table(tuple(key.upper() for key in keys), [tuple(c) for c in cells])
        for row in rows:
            if row["problem"]:
                _complain(row)

    rows = common.run(config, "storage.status", as_json=as_json, show=show)
    if any(row["problem"] for row in rows):
        sys.exit(1)


def _complain(row: dict[str, Any]) -> None:
    """Print what is wrong with a database, which some texts name themselves."""
    name = f"{row['name']}: "
    click.echo(name + row["problem"].removeprefix(name), err=True)


def _cell(value: object) -> object:
    return "" if value is None else value


@group.command()
@click.option(
    "--accept",
    default="",
    metavar="SHARD",
    help="Use a database as this shard although the directory expects another, or "
    "although it holds accounts already.",
)
@common.dry_run
@common.options
def migrate(accept: str, dry_run: bool, config: str, as_json: bool) -> None:
    """Make empty databases' schemas, bring older ones to this release.

    Shards that are new in the configuration are made known to the directory.  Exits
    with 75 when a database could not be migrated; the others are, all the same.
    """

    def show(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["problem"]:
                _complain(row)
            else:
                before = row["before"] or "none"
                click.echo(f"{row['name']:12} {before} -> {row['after']}")

    rows = common.run(
        config,
        "storage.migrate",
        as_json=as_json,
        show=show,
        dry_run=dry_run,
        accept=accept,
    )
    if any(row["problem"] for row in rows):
        sys.exit(os.EX_TEMPFAIL)


@group.command()
@click.option("--repair", is_flag=True, help="Mend what other data tells how to.")
@common.dry_run
@common.options
def check(repair: bool, dry_run: bool, config: str, as_json: bool) -> None:
    """Verify counters, references, threads, where accounts live, every blob.

    Exits with 1 when there are faults; with --repair, when some could not be mended.
    """
    if dry_run and not repair:
        raise click.UsageError("--dry-run goes with --repair: a check changes nothing")

    def show(result: dict[str, Any]) -> None:
        for line in result["faults"]:
            click.echo(line, err=True)
        for line in result["notes"]:
            click.echo(f"note: {line}")
        for line in result["repaired"]:
            click.echo(f"repaired: {line}")
        for line in result["left"] if repair else ():
            click.echo(f"cannot be mended: {line}", err=True)
        click.echo(
            f"{result['accounts']} accounts, {result['emails']} emails, "
            f"{result['blobs']} blobs checked: {len(result['faults'])} faults"
        )

    result = common.run(
        config,
        "storage.check",
        as_json=as_json,
        show=show,
        repair=repair,
        dry_run=dry_run,
    )
    if result["left" if repair and not dry_run else "faults"]:
        sys.exit(1)
