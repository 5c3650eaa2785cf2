"""One owner per database, and the others: answers that are lost, errors, limits."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from storage.engines import migrate_database, open_database, open_reader
from storage.metadata.common_tables import APPLIED
from storage.metadata.owner import shared as module
from storage.metadata.owner.applied import prune
from storage.metadata.owner.serving import FORGET_EVERY
from storage.metadata.sql import Sql
from tests.lib import sqlite_units as units
from tests.lib.failing import FailingDatabase
from tests.lib.sharing import join, pair, run_dir
from tests.lib.waiting import until

LIMIT = 30.0
KEYS = Sql(APPLIED.select())


def kept(tx, _account, _args):
    """Return how many outcomes are kept."""
    return len(tx.all(KEYS))


def add_and_count(tx, account, n):
    """Add a number; return how many there are."""
    units.add(tx, account, n)
    return tx.one(units.COUNT)[0]


def refuse(tx, account, n):
    """Add a number, then fail for a reason that a peer may know."""
    units.add(tx, account, n)
    raise MailError(Kind.OVER_QUOTA, "it is full", limit=n)


def crash(tx, account, n):
    """Add a number, then fail."""
    units.add(tx, account, n)
    raise ZeroDivisionError


def return_something_else(tx, account, n):
    """Add a number; what it returns is no plain data."""
    units.add(tx, account, n)
    return lambda: None


class Wrapped:
    """A ``Database`` around another one."""

    def __init__(self, inner):
        self._inner = inner
        self.name = inner.name
        self.uuid = inner.uuid

    async def write(self, work, account, args):
        return await self._inner.write(work, account, args)

    async def read(self, work, account, args):
        return await self._inner.read(work, account, args)

    def stuck_for(self):
        return self._inner.stuck_for()

    async def close(self):
        await self._inner.close()


async def numbers_in(directory):
    """Make a shard that has a table of numbers, too; returns its URL."""
    url = f"sqlite:///{directory}/numbers.db"
    await migrate_database(url, "shard", SystemClock())
    with contextlib.closing(sqlite3.connect(directory / "numbers.db")) as connection:
        connection.execute(units.SCHEMA)
    return url


@pytest.fixture
def run(tmp_path):
    """Return a function that runs work on (owner, remote) of a table of numbers."""

    def start(work, wrap=lambda inner: inner):
        async def open_local(url, kind, clock, *, name):
            return wrap(await open_database(url, kind, clock, name=name))

        async def whole():
            url = await numbers_in(tmp_path)
            async with asyncio.timeout(LIMIT), pair(url, open_local=open_local) as both:
                await work(*both)

        asyncio.run(whole())

    return start


def test_units_of_others_are_done_once_and_read_everywhere(run):
    async def work(owner, remote):
        assert owner.owns
        assert not remote.owns
        assert owner.uuid == remote.uuid != b""
        found = await asyncio.gather(
            *(
                one.write(units.add, 0, 2 * n + i)
                for n in range(500)
                for i, one in enumerate((owner, remote))
            )
        )
        assert found == list(range(1000))
        for one in (owner, remote):
            for read in (units.numbers, units.numbers_in_thread):
                assert await one.read(read, 0, None) == found

    run(work)


def test_a_heavy_unit_stays_heavy(run):
    marks = []

    class Noting(Wrapped):
        async def write(self, work, account, args):
            marks.append(getattr(work, "heavy", False))
            return await self._inner.write(work, account, args)

    async def work(owner, remote):
        await remote.write(units.add, 0, 1)
        await remote.write(units.add_slowly, 0, 2)
        assert marks == [False, True]

    run(work, Noting)


def test_errors_undo_their_unit_and_travel_as_they_may(run):
    async def work(owner, remote):
        for one, base in ((owner, 0), (remote, 10)):
            calls = [refuse, crash, return_something_else, units.add]
            found = await asyncio.gather(
                *(one.write(unit, 0, base + n) for n, unit in enumerate(calls)),
                return_exceptions=True,
            )
            assert found[0].kind is Kind.OVER_QUOTA
            assert found[0].text == "it is full"
            assert found[0].details == {"limit": base}
            assert found[3] == base + 3
            if one is remote:
                assert [found[1].kind, found[2].kind] == [Kind.INTERNAL] * 2
                with pytest.raises(MailError) as caught:  # a constraint
                    await one.write(units.add, 0, base + 3)
                assert caught.value.kind is Kind.INTERNAL
        assert await remote.read(units.numbers, 0, None) == [2, 3, 13]

    run(work)


def test_a_unit_that_cannot_be_sent_fails_alone(run):
    async def work(_owner, remote):
        found = await asyncio.gather(
            remote.write(units.add, 0, 1),
            remote.write(units.add_then, 0, (2, lambda: None)),
            return_exceptions=True,
        )
        assert found[0] == 1
        assert found[1].kind is Kind.INTERNAL

    run(work)


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
def test_a_lost_answer_is_found_and_nothing_is_done_twice(run, when):
    """The connection ends while a unit is done, or before its answer is sent."""
    senders = []

    class Losing(Wrapped):
        lose = 0

        async def write(self, work, account, args):
            if when == "before":
                await self._cut()
            running = asyncio.ensure_future(self._inner.write(work, account, args))
            await asyncio.sleep(0)
            if when == "meanwhile":
                await self._cut()
            result = await running
            if when == "after":
                await self._cut()
            return result

        async def _cut(self):
            if self.lose and senders[0]._peer:
                self.lose -= 1
                senders[0]._peer.abort()
                await asyncio.sleep(0.001 * (self.lose % 3))

    databases = []

    def wrap(inner):
        databases.append(Losing(inner))
        return databases[-1]

    async def work(_owner, remote):
        senders.append(remote)
        for n in range(10):
            databases[0].lose = n % 3
            assert await remote.write(add_and_count, 0, n) == n + 1
        databases[0].lose = 3
        many = [remote.write(add_and_count, 0, 100 + n) for n in range(100)]
        assert sorted(await asyncio.gather(*many)) == list(range(11, 111))
        assert not databases[0].lose
        assert len(await remote.read(units.numbers, 0, None)) == 110

    run(work, wrap)


def test_a_unit_under_which_every_owner_ends_is_given_up(run):
    senders = []

    class Deadly(Wrapped):
        async def write(self, work, account, args):
            if isinstance(args, tuple) and args[2] == 13:
                senders[0]._peer.abort()
                await asyncio.sleep(1)
            return await self._inner.write(work, account, args)

    async def work(_owner, remote):
        senders.append(remote)
        with pytest.raises(MailError) as caught:
            await remote.write(units.add, 0, 13)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert await remote.write(units.add, 0, 14) == 14
        assert await remote.read(units.numbers, 0, None) == [14]

    run(work, Deadly)


@pytest.mark.parametrize("mode", ["always", "sometimes", "after"])
def test_an_owner_that_fails_is_an_error_to_the_others_and_never_a_success(run, mode):
    failing = []

    def wrap(inner):
        failing.append(FailingDatabase(inner))
        return failing[-1]

    async def work(owner, remote):
        await remote.write(units.add, 0, 1)
        failing[0].mode = mode
        many = [remote.write(units.add, 0, n) for n in range(2, 30)]
        found = await asyncio.gather(*many, return_exceptions=True)
        failing[0].mode = "never"
        there = await remote.read(units.numbers, 0, None)
        for n, result in enumerate(found, 2):
            if isinstance(result, MailError):
                assert result.kind is Kind.UNAVAILABLE
                assert (n in there) is (mode == "after")
            else:
                assert result == n
                assert n in there
        assert any(isinstance(result, MailError) for result in found)
        assert await remote.write(units.add, 0, 99) == 99

    run(work, wrap)


def test_a_caller_that_is_cancelled_withdraws_its_unit(run):
    gate = asyncio.Event()

    class Slow(Wrapped):
        async def write(self, work, account, args):
            await gate.wait()
            return await self._inner.write(work, account, args)

    async def work(owner, remote):
        for one in (owner, remote):
            task = asyncio.create_task(one.write(units.add, 0, 1))
            await until(lambda one=one: one._flying or one._direct)
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.wait((task,))
        last = asyncio.create_task(remote.write(units.add, 0, 2))
        gate.set()
        assert await last == 2
        assert await remote.read(units.numbers, 0, None) == [2]
        assert not remote._flying
        assert remote.stuck_for() == 0

    run(work, Slow)


def test_outcomes_are_forgotten_when_their_answers_arrived(run):
    async def work(owner, remote):
        for n in range(4 * FORGET_EVERY):
            await remote.write(units.add, 0, n)
            assert await remote.read(kept, 0, None) <= FORGET_EVERY + 1
        assert await remote.read(kept, 0, None)
        await owner.write(prune, 0, 2**40)
        assert await remote.read(kept, 0, None) == 0

    run(work)


def test_more_than_may_wait_is_refused(run, monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING", 300)
    gate = asyncio.Event()

    class Slow(Wrapped):
        async def write(self, work, account, args):
            await gate.wait()
            return await self._inner.write(work, account, args)

    async def work(owner, remote):
        for one, base in ((owner, 0), (remote, 1000)):
            tasks = [
                asyncio.create_task(one.write(units.add, 0, base + n))
                for n in range(700)
            ]
            await until(lambda tasks=tasks: any(task.done() for task in tasks))
            assert one.stuck_for() >= 0
            gate.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            gate.clear()
            refused = [one for one in found if isinstance(one, MailError)]
            assert 100 <= len(refused) <= 400
            assert {error.kind for error in refused} == {Kind.UNAVAILABLE}
        gate.set()

    run(work, Slow)


def test_without_an_owner_writes_wait_a_while_and_reads_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)

    async def whole():
        url = await numbers_in(tmp_path)
        with run_dir() as place:
            remote = await join(url, place, candidate=False)
            assert await remote.read(units.numbers, 0, None) == []
            began = time.monotonic()
            with pytest.raises(MailError) as caught:
                await remote.write(units.add, 0, 1)
            assert caught.value.kind is Kind.UNAVAILABLE
            assert 0.25 < time.monotonic() - began < 5
            with pytest.raises(MailError):  # the next one is told at once
                await remote.write(units.add, 0, 1)
            owner = await join(url, place)
            await until(lambda: not remote._missing())
            assert await remote.write(units.add, 0, 1) == 1
            await remote.close()
            await owner.close()

    asyncio.run(whole())


def test_who_cannot_open_it_says_so_and_leaves_it_to_others(tmp_path):
    async def refuse_to_open(*_args, **_how):
        raise MailError(Kind.UNAVAILABLE, "no such disk")

    async def whole():
        url = await numbers_in(tmp_path)
        with run_dir() as place:
            with pytest.raises(MailError, match="no such disk"):
                await join(url, place, prefer=True, open_local=refuse_to_open)
            owner = await join(url, place)
            assert await owner.write(units.add, 0, 1) == 1
            await owner.close()
            with pytest.raises(MailError, match="run: mailserverd storage migrate"):
                await join(f"sqlite:///{tmp_path}/none.db", place)

    asyncio.run(whole())


def test_a_preferred_owner_that_cannot_open_it_leaves_it_to_others(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "REOPEN", 60.0)
    tries, opened = [], []

    async def open_it(*args, **how):
        opened.append(1)
        return await open_database(*args, **how)

    async def open_sometimes(*args, **how):
        tries.append(1)
        if len(tries) == 2:
            raise MailError(Kind.UNAVAILABLE, "no such disk")
        return await open_database(*args, **how)

    async def whole():
        url = await numbers_in(tmp_path)
        with run_dir() as place:
            preferred = await join(url, place, prefer=True, open_local=open_sometimes)
            preferred._leave.set()  # as if it had to hand over
            await until(lambda: preferred._fault)
            other = await join(url, place, open_local=open_it)
            await until(lambda: not preferred._missing())
            assert other.owns
            assert await preferred.write(units.add, 0, 1) == 1
            await asyncio.sleep(0.1)
            assert other.owns
            assert len(opened) == 1
            assert len(tries) == 2
            await preferred.close()
            await other.close()

    asyncio.run(whole())


def test_closing_finishes_what_was_asked_before(tmp_path):
    async def whole():
        url = await numbers_in(tmp_path)
        with run_dir() as place:
            owner, other, remote = (
                await join(url, place, prefer=True),
                await join(url, place),
                await join(url, place, candidate=False),
            )
            everybody = [owner, remote, other]
            tasks = [
                asyncio.create_task(one.write(units.add, 0, n))
                for n, one in enumerate(everybody * 400)
            ]
            await asyncio.sleep(0)
            for one in everybody:
                await one.close()
                with pytest.raises(MailError) as caught:
                    await one.write(units.add, 0, 10**6)
                assert caught.value.kind is Kind.UNAVAILABLE
                with pytest.raises(MailError):
                    await one.read(units.numbers, 0, None)
                await one.close()
            assert await asyncio.gather(*tasks) == list(range(1200))
            assert [path.name for path in place.iterdir()] == ["shared.owner.lock"]

    asyncio.run(whole())


def test_a_reader_sees_what_was_written_while_owners_come_and_go(tmp_path):
    async def whole():
        url = await numbers_in(tmp_path)
        reader = await open_reader(url, "shard", SystemClock(), name="r")
        with run_dir() as place:
            for n in range(6):
                owner = await join(url, place, prefer=True)
                await owner.write(units.add, 0, n)
                for read in (units.numbers, units.numbers_in_thread):
                    assert await reader.read(read, 0, None) == list(range(n + 1))
                await owner.close()
                assert len(await reader.read(units.numbers, 0, None)) == n + 1
                with pytest.raises(MailError):
                    await reader.read(units.add_in_reader, 0, 77)
        await reader.close()
        with pytest.raises(MailError) as caught:
            await reader.read(units.numbers, 0, None)
        assert caught.value.kind is Kind.UNAVAILABLE

    asyncio.run(whole())
