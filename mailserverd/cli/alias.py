"""``mailserverd alias add | list | remove``."""

from __future__ import annotations

from typing import Any

import click

from mailserverd.cli import common


@click.group("alias")
def group() -> None:
    """Other addresses, and where their mail goes."""


@group.command()
@click.argument("address")
@click.argument("targets", nargs=-1, required=True)
@click.option(
    "--send-as/--no-send-as",
    default=None,
    help="Whether targets here may send as ADDRESS; default: a single one may.",
)
@common.dry_run
@common.options
def add(
    address: str,
    targets: tuple[str, ...],
    send_as: bool | None,
    dry_run: bool,
    config: str,
    as_json: bool,
) -> None:
    """Deliver mail for ADDRESS to TARGETS, here or elsewhere."""
    common.run(
        config,
        "alias.add",
        as_json=as_json,
        show=lambda r: click.echo(f"{r['address']} -> {', '.join(r['targets'])}"),
        address=address,
        targets=list(targets),
        send_as=send_as,
        dry_run=dry_run,
    )


@group.command("list")
@click.option("--domain", default="", help="Only of this domain.")
@common.options
def list_(domain: str, config: str, as_json: bool) -> None:
    """List aliases."""

    def show(rows: list[dict[str, Any]]) -> None:
        common.table(
            ("ADDRESS", "TARGETS"),
            [(row["address"], ", ".join(row["targets"])) for row in rows],
        )

    common.run(config, "alias.list", as_json=as_json, show=show, domain=domain)


@group.command()
@click.argument("address")
@common.dry_run
@common.options
def remove(address: str, dry_run: bool, config: str, as_json: bool) -> None:
    """Remove an alias."""
    common.run(
        config,
        "alias.remove",
        as_json=as_json,
        show=lambda _: click.echo(f"removed {address}"),
        address=address,
        dry_run=dry_run,
    )
