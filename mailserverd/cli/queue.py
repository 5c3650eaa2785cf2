"""``mailserverd queue list | show | retry | hold | release | cancel``."""

from __future__ import annotations

import datetime
from typing import Any

import click

from mailserverd.cli import common

TIMES = frozenset({"created", "expires", "next_attempt"})


@click.group("queue")
def group() -> None:
    """Outgoing mail: what waits, why, and until when."""


@group.command("list")
@click.option("--domain", default="", help="Only to this domain.")
@common.options
def list_(domain: str, config: str, as_json: bool) -> None:
    """List messages that wait, a line for each recipient."""

    def show(rows: list[dict[str, Any]]) -> None:
        if not rows:
            click.echo("the queue is empty")
            return
        common.table(
            ("ID", "FROM", "TO", "STATE", "TRIES", "NEXT", "LAST REPLY"),
            [
                (
                    row["id"],
                    row["sender"] or "<>",
                    to["address"],
                    to["state"],
                    to["attempts"],
                    _when(to["next_attempt"]),
                    to["reply"],
                )
                for row in rows
                for to in row["recipients"]
            ],
        )

    common.run(config, "queue.list", as_json=as_json, show=show, domain=domain)


@group.command()
@click.argument("queue_id", metavar="ID")
@common.options
def show(queue_id: str, config: str, as_json: bool) -> None:
    """Show one message: envelope, recipients, replies and times."""

    def render(row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key != "recipients":
                click.echo(f"{key:12} {_when(value) if key in TIMES else value}")
        for to in row["recipients"]:
            click.echo(f"recipient    {to['address']}")
            for key, value in to.items():
                if key != "address":
                    click.echo(f"  {key:12} {_when(value) if key in TIMES else value}")

    common.run(config, "queue.show", as_json=as_json, show=render, id=queue_id)


def _action(name: str, text: str, done: str) -> None:
    @group.command(name, help=text)
    @click.argument("queue_id", metavar="[ID|all]", required=False)
    @click.option("--domain", default="", help="Everything to this domain.")
    @common.dry_run
    @common.options
    def command(
        queue_id: str | None, domain: str, dry_run: bool, config: str, as_json: bool
    ) -> None:
        if bool(queue_id) == bool(domain):
            raise click.UsageError("name an ID, all, or --domain D")
        common.run(
            config,
            f"queue.{name}",
            as_json=as_json,
            show=lambda r: click.echo(f"{done}: {r['count']}"),
            id=queue_id or "",
            domain=domain,
            dry_run=dry_run,
        )


_action("retry", "Try now, whatever the schedule says.", "tried now")
_action("hold", "Keep, without trying, until released.", "held")
_action("release", "Let held messages go on.", "released")
_action("cancel", "Remove without delivering and without a bounce.", "canceled")


def _when(seconds: float | None) -> str:
    if not seconds:
        return ""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
