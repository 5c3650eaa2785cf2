"""``mailserverd storage blobs verify | compact | stats``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from mailserverd.cli import common

if TYPE_CHECKING:
    from collections.abc import Callable

RATE = 16 << 20


def _rate(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--rate",
        type=click.IntRange(min=0),
        default=default,
        show_default=True,
        metavar="OCTETS",
        help="At most so many octets per second, 0 for any number.",
    )


@click.group("blobs")
def group() -> None:
    """The store of message bytes: its segments, damage, garbage."""


@group.command()
@_rate(4 * RATE)
@common.options
def verify(rate: int, config: str, as_json: bool) -> None:
    """Read every segment back, without the databases, and compare all checksums."""

    def show(result: dict[str, Any]) -> None:
        for one in result["damage"]:
            where = f"segment {one['segment']}, {one['offset']} to {one['end']}"
            click.echo(f"{where}: {one['why']}", err=True)
        click.echo(
            f"{result['segments']} segments, {result['records']} records, "
            f"{octets(result['octets'])} read back: {len(result['damage'])} damaged"
        )

    result = common.run(
        config, "storage.blobs.verify", as_json=as_json, show=show, rate=rate
    )
    if result["damage"]:
        sys.exit(1)


@group.command()
@_rate(RATE)
@click.option(
    "--grace",
    type=click.IntRange(min=0),
    default=None,
    metavar="SECONDS",
    help="Look at segments not written to for so long [default: a day].  With less, "
    "mail that is being delivered just now may have to come again; none is lost.",
)
@common.dry_run
@common.options
def compact(
    rate: int, grace: int | None, dry_run: bool, config: str, as_json: bool
) -> None:
    """Remove what nobody needs, and pack segments that are mostly garbage.

    May be interrupted at any time; the next run goes on from there.  The daemon does
    the same every six hours.
    """

    def show(done: dict[str, Any]) -> None:
        click.echo(
            f"{done['expired_uploads']} uploads expired, {done['forgotten']} blobs "
            f"forgotten; {done['examined']} segments looked at"
        )
        click.echo(
            f"packed {done['rewritten']} segments into {octets(done['copied'])}; "
            f"removed {done['removed']} ({octets(done['freed'])})"
        )
        click.echo(
            f"{done['retired']} segments ({octets(done['pending'])}) go after a while; "
            f"{octets(done['garbage'])} of garbage are left"
        )

    common.run(
        config,
        "storage.blobs.compact",
        as_json=as_json,
        show=show,
        rate=rate,
        grace=grace,
        dry_run=dry_run,
    )


@group.command()
@_rate(4 * RATE)
@common.options
def stats(rate: int, config: str, as_json: bool) -> None:
    """Count segments and records, and what of them is needed."""

    def show(found: dict[str, Any]) -> None:
        live = found["live"] / found["octets"] if found["octets"] else 1.0
        rows = [
            ("segments", f"{found['segments']} ({found['unsealed']} being written)"),
            ("octets", octets(found["octets"])),
            ("live", f"{octets(found['live'])} ({live:.0%})"),
            ("garbage", octets(found["garbage"])),
            ("records", f"{found['records']} ({found['live_records']} needed)"),
            ("average record", octets(found["average_record"])),
            ("puts since the start", found["puts"]),
            ("syncs per put", f"{found['syncs_per_put']:.2f}"),
        ]
        common.table(("BLOBS", ""), rows)

    common.run(config, "storage.blobs.stats", as_json=as_json, show=show, rate=rate)


def octets(count: int) -> str:
    """Write a number of octets as people do: ``1.5 MiB``."""
    size, units = float(count), ("octets", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if size < 1024 or unit == units[-1]:
            break
        size /= 1024
    return f"{count} octets" if unit == "octets" else f"{size:.1f} {unit}"
