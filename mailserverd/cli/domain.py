"""``mailserverd domain add | list | remove | dns``."""

from __future__ import annotations

import sys
from typing import Any

import click

from mailserverd.cli import common


@click.group("domain")
def group() -> None:
    """Mail domains, their signing keys and DNS records."""


@group.command()
@click.argument("domain")
@common.dry_run
@common.options
def add(domain: str, dry_run: bool, config: str, as_json: bool) -> None:
    """Serve a domain; makes its DKIM keys."""

    def show(result: dict[str, Any]) -> None:
        click.echo(f"{result['domain']}: publish the records that this prints:")
        click.echo(f"  mailserverd domain dns {result['domain']}")

    common.run(
        config,
        "domain.add",
        as_json=as_json,
        show=show,
        domain=domain,
        dry_run=dry_run,
    )


@group.command("list")
@common.options
def list_(config: str, as_json: bool) -> None:
    """List domains."""

    def show(rows: list[dict[str, Any]]) -> None:
        common.table(
            ("DOMAIN", "ACCOUNTS", "ALIASES"),
            [(row["domain"], row["accounts"], row["aliases"]) for row in rows],
        )

    common.run(config, "domain.list", as_json=as_json, show=show)


@group.command()
@click.argument("domain")
@click.option("--force", is_flag=True, help="With its accounts, aliases and mail.")
@common.dry_run
@common.options
def remove(domain: str, force: bool, dry_run: bool, config: str, as_json: bool) -> None:
    """Stop serving a domain."""
    common.run(
        config,
        "domain.remove",
        as_json=as_json,
        show=lambda _: click.echo(f"removed {domain}"),
        domain=domain,
        force=force,
        dry_run=dry_run,
    )


@group.command()
@click.argument("domain")
@click.option("--check", is_flag=True, help="Compare with the live DNS.")
@common.options
def dns(domain: str, check: bool, config: str, as_json: bool) -> None:
    """Print every record to publish, as a zone file."""

    def show(result: dict[str, Any]) -> None:
        for record in result["records"]:
            if record["comment"]:
                click.echo(f"; {record['comment']}")
            click.echo(f"{record['name']}. {record['type']} {record['value']}")
        for line in result.get("check", ()):
            mark = "ok     " if line["ok"] else "WRONG  "
            click.echo(f"{mark}{line['name']} {line['type']}: {line['text']}")

    result = common.run(
        config, "domain.dns", as_json=as_json, show=show, domain=domain, check=check
    )
    if not all(line["ok"] for line in result.get("check", ())):
        sys.exit(1)


@group.command()
@click.argument("domain")
@click.argument("address", required=False, default="")
@common.dry_run
@common.options
def postmaster(
    domain: str, address: str, dry_run: bool, config: str, as_json: bool
) -> None:
    """Say who gets postmaster@ and abuse@; without ADDRESS the first account."""
    common.run(
        config,
        "domain.postmaster",
        as_json=as_json,
        show=lambda r: click.echo(f"{r['domain']}  {r['postmaster'] or 'default'}"),
        domain=domain,
        address=address,
        dry_run=dry_run,
    )
