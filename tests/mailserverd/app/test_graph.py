"""New settings reach the services that have been built with older ones."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING

import pytest

from mailserverd.app.graph import build
from mailserverd.app.stores import make_missing, open_stores
from mailserverd.core.errors import MailError
from mailserverd.core.ports import SystemClock
from mailserverd.core.types import Access, Envelope, Recipient
from mailserverd.settings import read

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mailserverd.app.graph import Graph
    from mailserverd.settings import Settings

CLOCK = SystemClock()
TEXT = '[server]\nhostname = "mail.example.test"\ndata_dir = "data"\n'
ALICE = "alice@example.test"
MESSAGE = b"From: alice@example.test\r\n\r\n"


@contextlib.asynccontextmanager
async def graphs(settings: Settings) -> AsyncIterator[Graph]:
    await make_missing(settings, CLOCK)
    stores = await open_stores(settings, CLOCK)
    graph = build(settings, stores, CLOCK)
    try:
        yield graph
    finally:
        await graph.close()
        await stores.close()


def test_ready_while_a_shard_works(tmp_path: pathlib.Path) -> None:
    urls = [f'"sqlite:///{tmp_path}/data/shard-{number}.db"' for number in (0, 1)]
    text = f"{TEXT}[storage]\nshards = [{', '.join(urls)}]\n"
    (tmp_path / "mailserverd.toml").write_text(text)

    async def main() -> None:
        async with graphs(read(tmp_path / "mailserverd.toml")) as graph:
            for check in graph.checks().values():
                await check()
            first, second = graph.stores.shard_dbs
            assert await graph.checks()["shards"]() == ""
            await first.close()
            assert await graph.checks()["shards"]() == "shard-0 down"
            await second.close()
            with pytest.raises(MailError, match="no shard"):
                await graph.checks()["shards"]()

    asyncio.run(main())


def test_mail_given_to_the_queue_expires_as_now_configured(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "mailserverd.toml").write_text(TEXT)
    settings = read(tmp_path / "mailserverd.toml")

    async def main() -> None:
        async with graphs(settings) as graph:
            commands = graph.accounts.commands()
            await commands["domain.add"](domain="example.test")
            await commands["account.add"](address=ALICE, password="a pass word")
            record = await graph.stores.directory.account_by_address(ALICE)
            assert record is not None
            access = Access(record.account_id, record.account_id)
            envelope = Envelope(ALICE, (Recipient("x@remote.test"),))
            for days in (5, 2):
                outbound = dataclasses.replace(
                    settings.outbound, give_up=days * 86400.0
                )
                graph.apply(dataclasses.replace(settings, outbound=outbound))
                sent = await graph.submission.submit(access, envelope, MESSAGE)
                queued = (await graph.queue.show(sent.queue_id)).message
                assert queued.expires - queued.created == days * 86400

    asyncio.run(main())


def test_one_of_several_nodes_works_in_the_background(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mailserverd.toml").write_text(TEXT)

    async def main() -> None:
        async with graphs(read(tmp_path / "mailserverd.toml")) as graph:
            graph.nodes = True
            begun: asyncio.Queue[str] = asyncio.Queue()

            async def work(name: str) -> None:
                begun.put_nowait(name)
                await asyncio.Event().wait()

            async with asyncio.TaskGroup() as group:
                nodes = []
                for name in ("one", "other"):
                    graph.runner.run = functools.partial(work, name)  # type: ignore[method-assign]
                    run = graph.background()["queue"]
                    nodes.append(group.create_task(_run(run)))
                first = await begun.get()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(begun.get(), 0.2)
                nodes[("one", "other").index(first)].cancel()
                assert await begun.get() != first  # it takes over
                for node in nodes:
                    node.cancel()

    async def _run(work: Callable[[], Awaitable[None]]) -> None:
        await work()

    asyncio.run(main())
