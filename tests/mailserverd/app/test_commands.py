"""Commands on the queue: a dry run says what the command would do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.app.commands import Commands
from mailserverd.app.graph import build
from mailserverd.app.stores import make_missing, open_stores
from mailserverd.core.errors import MailError
from mailserverd.core.ports import SystemClock
from mailserverd.core.types import Recipient
from mailserverd.settings import read
from storage.model import BlobRef
from storage.queue import ClaimLimits, NewQueued

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable

    from mailserverd.app.graph import Graph

    Run = Callable[..., Any]

TEXT = '[server]\nhostname = "mail.example.test"\ndata_dir = "data"\n'
CLOCK = SystemClock()


@contextlib.asynccontextmanager
async def commands(base: pathlib.Path) -> AsyncIterator[tuple[Graph, Run]]:
    (base / "mailserverd.toml").write_text(TEXT)
    settings = read(base / "mailserverd.toml")
    await make_missing(settings, CLOCK)
    stores = await open_stores(settings, CLOCK)
    graph = build(settings, stores, CLOCK)
    known = Commands(settings, graph)

    async def run(command: str, **args: Any) -> Any:
        return await known.run(command, args, lambda _: None)

    try:
        yield graph, run
    finally:
        await graph.close()
        await stores.close()


def message(*addresses: str) -> NewQueued:
    return NewQueued(
        reverse_path="alice@example.test",
        recipients=tuple(Recipient(address) for address in addresses),
        blob=BlobRef(addresses[0].encode().ljust(32), b"s" * 16, 1, 0, 10, 10),
        expires=int(CLOCK.now()) + 3600,
    )


SELECTED: tuple[dict[str, str], ...] = (
    {"id": "all"},
    {"domain": "x.test"},
    {"id": "the first"},
)


@pytest.mark.parametrize("which", SELECTED, ids=str)
def test_a_dry_run_counts_what_the_command_does(
    tmp_path: pathlib.Path, which: dict[str, str]
) -> None:
    """Recipients, of that domain, in a state that it changes; once messages."""

    async def main() -> None:
        async with commands(tmp_path) as (graph, run):
            first = await graph.queue.enqueue(message("a@x.test", "b@x.test", "c@y.z"))
            await graph.queue.enqueue(message("d@x.test", "e@y.z"))
            chosen = {"id": first} if which.get("id") == "the first" else which
            for command in ("hold", "retry", "release", "retry", "cancel", "cancel"):
                said = await run(f"queue.{command}", **chosen, dry_run=True)
                done = await run(f"queue.{command}", **chosen)
                assert said == done | {"dry_run": True}, command
                assert done["count"] or command in {"retry", "cancel"}

    asyncio.run(main())


def test_what_is_in_flight_is_held_or_cancelled_when_the_attempt_ends(
    tmp_path: pathlib.Path,
) -> None:
    async def main() -> None:
        async with commands(tmp_path) as (graph, run):
            await graph.queue.enqueue(message("a@x.test", "b@x.test"))
            limits = ClaimLimits(limit=1, per_domain=1, busy=(), lease=60)
            assert len(await graph.queue.claim(limits)) == 1
            for command, count in (("retry", 0), ("hold", 2), ("cancel", 2)):
                for dry_run in (True, False):
                    done = await run(f"queue.{command}", id="all", dry_run=dry_run)
                    assert done["count"] == count, command

    asyncio.run(main())


def test_arguments_are_the_command_s(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with commands(tmp_path) as (_, run):
            for command, args in (
                ("queue.lost", {}),
                ("queue.show", {}),
                ("queue.hold", {"id": "all", "more": 1}),
                ("queue.hold", {"id": "all", "states": ()}),
                ("account.add", {"address": "a@example.test"}),
                ("account.add", {"address": 5, "password": "a pass word"}),
                ("account.quota", {"address": "a@example.test", "quota": "1"}),
                ("alias.add", {"address": "a@example.test", "targets": "b@c.d"}),
                ("queue.hold", {"id": None}),
            ):
                with pytest.raises(MailError, match="INVALID"):
                    await run(command, **args)

    asyncio.run(main())


def test_the_status_counts_the_accounts_of_each_shard(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with commands(tmp_path) as (_, run):
            await run("domain.add", domain="example.test")
            for name in ("alice", "bob"):
                address = f"{name}@example.test"
                await run("account.add", address=address, password="long enough")
            rows = {row["name"]: row for row in await run("storage.status")}
            assert rows["shard-0"]["accounts"] == 2
            assert not any(row.get("problem") for row in rows.values())

    asyncio.run(main())
