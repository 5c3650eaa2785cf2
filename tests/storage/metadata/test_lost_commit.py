"""Connections that break during COMMIT: every unit is there once, or never was."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from storage.engines import open_database
from storage.metadata import check, messages, postgresql_link, postgresql_url
from storage.metadata.counters import LOST
from storage.metadata.deliver import add_email, prepare_account
from storage.model import NewAccount
from tests.lib import databases
from tests.lib.postgresql_proxy import BEFORE, HOW, LATE, SILENT, Proxy
from tests.lib.shard import delivery

ACCOUNTS = (1, 2, 3)


@pytest.fixture
def proxy(tmp_path):
    """The way to a new shard with three accounts; ``proxy.name`` is its database."""

    async def prepare(engine):
        url = await engine.prepare(tmp_path, "shard", "shard-0")
        async with opened(url) as database:
            for account in ACCOUNTS:
                await database.write(prepare_account, account, NewAccount())

    with databases.engine("postgresql") as engine:
        asyncio.run(prepare(engine))
        with Proxy(engine.cluster) as made:
            made.name = engine.database(tmp_path, "shard-0")
            yield made


@contextlib.asynccontextmanager
async def opened(url):
    database = await open_database(url, "shard", SystemClock(), name="shard-0")
    try:
        yield database
    finally:
        await database.close()


@pytest.mark.parametrize("how", HOW)
def test_a_batch_whose_commit_was_cut_off_is_there_once(proxy, how):
    """Without any key by which a unit could know itself again."""

    async def run():
        async with opened(proxy.url(proxy.name)) as database:
            first = await database.write(add_email, 1, delivery(1))
            proxy.cut(how)
            lost = LOST.labels("shard-0")._value.get()
            added = await asyncio.gather(
                *(database.write(add_email, 1, delivery(n)) for n in range(2, 12))
            )
            assert proxy.cuts == 1
            # What the server committed is found, and not done once more.
            rerun = LOST.labels("shard-0")._value.get() - lost
            assert rerun == (how != SILENT)
            assert {one.email_id for one in added}.isdisjoint({first.email_id})
            assert len({one.email_id for one in added}) == 10
            head = await database.read(messages.view_head, 1, (1, 100))
            known = sorted(one.email_id for one in (first, *added))
            assert [row[1] for row in head.rows] == known
            assert await database.read(check.check_account, 1, None) == ()

    asyncio.run(run())


def test_commits_that_keep_breaking_lose_and_double_nothing(proxy):
    """Under load, each in another way."""

    async def send(database, account, number):
        return account, await database.write(add_email, account, delivery(number))

    async def run():
        async with opened(proxy.url(proxy.name)) as database:
            done = []
            for number in range(12):
                proxy.cut((BEFORE, SILENT, BEFORE, LATE)[number % 4])
                done += await asyncio.gather(
                    *(
                        send(database, account, number * 10 + n)
                        for n in range(5)
                        for account in ACCOUNTS
                    )
                )
            assert proxy.cuts >= 12
            for account in ACCOUNTS:
                mine = sorted(one.email_id for to, one in done if to == account)
                assert len(set(mine)) == 60
                head = await database.read(messages.view_head, account, (1, 10_000))
                assert [row[1] for row in head.rows] == mine
                assert await database.read(check.check_account, account, None) == ()

    asyncio.run(run())


def test_the_way_to_the_database_may_break_at_any_moment(proxy):
    """Not only at a COMMIT: connections are cut while units run."""

    async def run():
        async with opened(proxy.url(proxy.name)) as database:
            done = []

            async def sender(first):
                for number in range(first, first + 40):
                    added = await database.write(add_email, 1, delivery(number))
                    done.append(added)

            async def cutter():
                while len(done) < 300:
                    await asyncio.to_thread(proxy.drop)
                    await asyncio.sleep(0.2)

            await asyncio.gather(cutter(), *(sender(1000 * n) for n in range(10)))
            mine = sorted(one.email_id for one in done)
            assert len(set(mine)) == 400
            head = await database.read(messages.view_head, 1, (1, 10_000))
            assert [row[1] for row in head.rows] == mine

    asyncio.run(run())


def test_a_server_that_greets_and_says_no_more_is_given_up(proxy, monkeypatch):
    """As one behind a pooler that waits for it."""

    async def run():
        async with opened(proxy.url(proxy.name)) as database:
            await database.write(add_email, 1, delivery(1))
            proxy.deaf = True
            proxy.drop()
            with monkeypatch.context() as patch:
                patch.setattr(postgresql_link, "CONNECT_LIMIT", 0.5)
                patch.setattr(postgresql_link, "PATIENCE", 0.5)
                calls = [
                    database.write(add_email, 1, delivery(2)),
                    database.read(messages.view_head, 1, (1, 100)),
                ]
                async with asyncio.timeout(30):
                    found = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(one, MailError) for one in found)
            assert {one.kind for one in found} == {Kind.UNAVAILABLE}
            proxy.deaf = False
            await database.write(add_email, 1, delivery(3))

    asyncio.run(run())


def test_opening_gives_up_on_a_server_that_greets_and_says_no_more(proxy, monkeypatch):
    monkeypatch.setattr(postgresql_url, "LOOK_LIMIT", 0.2)
    monkeypatch.setattr(postgresql_url, "CONNECT_LIMIT", 3.0)  # to close, too
    proxy.deaf = True

    async def run():
        async with asyncio.timeout(30), opened(proxy.url(proxy.name)):
            pass

    with pytest.raises(MailError) as caught:
        asyncio.run(run())
    assert caught.value.kind is Kind.UNAVAILABLE
    assert "is PostgreSQL running there?" in caught.value.text
