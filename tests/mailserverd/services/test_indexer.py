"""The indexer: when it feeds, what it feeds, and what it does when that fails."""

from __future__ import annotations

import asyncio

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.services import indexer as service
from mailserverd.services.indexer import Indexer
from mailserverd.services.search import Search
from storage.metadata import indexed, texts
from storage.metadata.purge import purge_account
from storage.model import Condition
from tests.lib.memory_index import MemoryIndex
from tests.lib.office import ME, OTHER, mail, office


class World:
    """An office with an indexer that is stepped by hand."""

    def __init__(self, it):
        self.it = it
        self.index = MemoryIndex()
        self.busy = False
        self.indexer = Indexer(
            it.store,
            self.index,
            [it.database],
            it.clock,
            busy=lambda: self.busy,
        )

    async def step(self, seconds=0.0):
        self.it.clock.move(seconds)
        await self.indexer.step()
        return len(self.index.kept.get(1, ()))

    async def fill(self, count, access=ME):
        for number in range(count):
            await self.it.add(mail(f"message {number}"), access)


@pytest.fixture
def world(tmp_path):
    """Return a function that runs ``work(world)``."""

    def run(work):
        async def inside():
            async with office(tmp_path) as it:
                await work(World(it))

        asyncio.run(inside())

    return run


def test_it_waits_for_a_batch_or_for_quiet(world, monkeypatch):
    monkeypatch.setattr(service, "FLUSH_MESSAGES", 6)

    async def work(w):
        await w.step()
        await w.fill(2)
        assert await w.step(30) == 0
        await w.fill(1)
        assert await w.step(40) == 0  # a change was just seen
        assert await w.step(59) == 0
        assert await w.step(1) == 3
        assert w.indexer.lag == 0
        await w.fill(6)
        assert await w.step(service.LOOK_EVERY) == 9

    world(work)


def test_being_busy_puts_it_off_but_not_for_ever(world, monkeypatch):
    monkeypatch.setattr(service, "MAX_LAG", 7)

    async def work(w):
        await w.step()
        w.busy = True
        await w.fill(4)
        assert await w.step(100) == 0
        assert await w.step(100) == 0
        await w.fill(4)
        assert await w.step(service.LOOK_EVERY) == 8

    world(work)


def test_what_was_there_before_it_started_is_indexed(world):
    async def work(w):
        await w.fill(3)
        await w.fill(2, OTHER)
        await w.step()
        assert await w.step(60) == 3
        assert len(w.index.kept[2]) == 2

    world(work)


def test_nothing_is_kept_of_accounts_that_are_quiet(world):
    """Nor asked of the index when the daemon starts again."""

    async def work(w):
        await w.fill(2)
        await w.step()
        await w.step(60)
        assert w.indexer._accounts == {}
        again = World(w.it)
        await again.step()
        await again.step(service.LOOK_EVERY)
        assert again.indexer._accounts == {}
        assert again.index.updates == []

    world(work)


def test_an_index_that_was_lost_is_made_again(world):
    async def work(w):
        await w.fill(2)
        await w.step()
        await w.step(60)
        w.index.kept.clear()
        w.index.marks.clear()
        search = Search(w.it.store, w.index, w.it.messages, None)
        found = await search.resolve(ME, Condition("text", "message"))
        assert len(found.value) == 2
        await w.step(service.LOOK_EVERY)
        assert await w.step(60) == 2

    world(work)


def test_changes_of_flags_write_nothing(world):
    async def work(w):
        await w.fill(2)
        await w.step()
        await w.step(60)
        w.index.updates.clear()
        await w.it.mailboxes.create_path(ME, "x")
        await w.step(61)
        assert w.indexer.lag > 0
        await w.step(61)
        assert w.index.updates == []
        assert w.indexer.lag == 0

    world(work)


def test_feeds_are_cut_between_modseqs(world, monkeypatch):
    monkeypatch.setattr(service, "BATCH_MESSAGES", 4)
    monkeypatch.setattr(texts, "FEED_ROWS", 3)

    async def work(w):
        await w.fill(5)
        await w.it.messages.copy(ME, 1, [1, 2, 3, 4, 5], 2)
        await w.it.messages.copy(ME, 1, [1, 2, 3, 4, 5], 2)  # five new emails at once
        await w.fill(2)
        await w.indexer.flush(1)
        assert sorted(w.index.kept[1]) == list(range(1, 13))
        counts = [count for _, count, _, _ in w.index.updates]
        assert counts == [4, 6, 2]

    world(work)


def test_a_feed_is_bounded_by_octets(world, monkeypatch):
    monkeypatch.setattr(service, "BATCH_OCTETS", 1)

    async def work(w):
        await w.fill(3)
        await w.indexer.flush(1)
        assert [count for _, count, _, _ in w.index.updates] == [1, 1, 1]

    world(work)


def test_failures_back_off_and_then_the_index_is_made_anew(world):
    async def work(w):
        await w.fill(3)
        await w.step()
        await w.step(60)
        assert w.index.marks[1] > 0
        await w.fill(2)
        await w.step(service.LOOK_EVERY)
        update = w.index.update

        async def refuse(*_):
            raise MailError(Kind.UNAVAILABLE)

        w.index.update = refuse
        for pause in service.BACK_OFF:
            assert await w.step(60 if pause == service.BACK_OFF[0] else 0) in {0, 3}
            await w.step(pause - 0.5)  # too early: nothing is tried
            await w.step(0.5)
        assert 1 not in w.index.marks  # dropped
        w.index.update = update
        assert await w.step(service.BACK_OFF[-1]) == 5

    world(work)


def test_somebody_else_moving_the_index_is_no_failure(world):
    async def work(w):
        await w.fill(2)
        update = w.index.update

        async def moved(*_):
            raise MailError(Kind.CONFLICT)

        w.index.update = moved
        await w.indexer.flush(1)
        w.index.update = update
        await w.indexer.flush(1)
        assert len(w.index.kept[1]) == 2

    world(work)


def test_an_account_that_is_gone_loses_its_index(world):
    async def work(w):
        await w.fill(1)
        await w.step()
        await w.step(60)
        assert 1 in w.index.kept
        while await w.it.store.write(ME, purge_account, 100):
            pass
        await w.step(service.LOOK_EVERY)
        assert 1 not in w.index.kept
        assert await w.it.database.read(indexed.orphans, 0, 9) == ()

    world(work)


def test_it_runs_by_itself(world, monkeypatch):
    monkeypatch.setattr(service, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(service, "STEP_EVERY", 0.01)
    monkeypatch.setattr(service, "FLUSH_MESSAGES", 1)

    async def work(w):
        update, done = w.index.update, asyncio.Event()

        async def told(*args):
            await update(*args)
            if len(w.index.kept.get(1, ())) == 3:
                done.set()

        w.index.update = told
        task = asyncio.create_task(w.indexer.run())
        await w.fill(3)
        await asyncio.wait_for(done.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    world(work)
