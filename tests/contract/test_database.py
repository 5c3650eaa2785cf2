"""What ``storage.api`` promises of Tx, Database, Reader and MetadataStore, word by
word, with units of the test's own; ``test_metadata`` does it with the shard's."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from sqlalchemy import insert, select, update

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from mailserverd.core.types import system
from storage.engines import open_reader
from storage.metadata.common_tables import PROGRESS
from storage.metadata.counters import COMMITS, UNITS
from storage.metadata.shards import Shards
from storage.metadata.sql import Insert, Sql, heavy, inline, p
from tests.lib import databases
from tests.lib.clock import ManualClock
from tests.lib.database_engines import ENGINES
from tests.lib.failing import MODES, FailingDatabase

T = PROGRESS.c
ADD = Sql(insert(PROGRESS).values(name=p("n"), position=p("at")))
MANY = Insert(insert(PROGRESS), ("name", "position"))
ALL = Sql(select(T.name, T.position).order_by(T.name))
ONE = Sql(select(T.position).where(T.name == p("n")))
MOVE = Sql(
    update(PROGRESS).where(T.position >= p("low")).values(position=T.position + 1)
)


def add(tx, _account, name):
    """Add a row; its position is how many there were before."""
    count = len(tx.all(ALL))
    tx.run(ADD, {"n": name, "at": count})
    return count


@heavy
def add_heavily(tx, account, name):
    """Do so in a thread, where the engine has threads."""
    return add(tx, account, name)


@inline
def rows(tx, _account, _args):
    """Return all rows."""
    return [tuple(row) for row in tx.all(ALL)]


def rows_in_thread(tx, account, _args):
    """Return all rows, twice read."""
    first = rows(tx, account, None)
    assert rows(tx, account, None) == first
    return first


def use_everything(tx, _account, _args):
    """Use each method of a Tx; return what they said."""
    tx.many(MANY, [(f"m{n}", n) for n in range(5)])
    tx.run(ADD, {"n": "é ☃", "at": 2**62})
    return [
        tx.one(ONE, {"n": "nobody"}),
        tuple(tx.one(ONE, {"n": "m3"})),
        tuple(tx.one(ONE, {"n": "é ☃"})),
        tx.run(MOVE, {"low": 3}),
        tx.run(MOVE, {"low": 2**62 + 7}),
        [list(map(tuple, found)) for found in tx.each((ONE, {"n": "m0"}), (ALL, {}))],
        tx.all(ONE, {"n": "nobody"}),
    ]


def add_then_refuse(tx, account, name):
    """Add a row, then refuse with details."""
    add(tx, account, name)
    raise MailError(Kind.OVER_QUOTA, "it is full", limit=7)


def moment(tx, _account, _args):
    """Return the time that the unit sees."""
    return tx.now


class Ticking(ManualClock):
    """A clock that goes on whenever it is asked."""

    def now(self):
        self.move(1)
        return super().now()


@pytest.fixture(params=ENGINES)
def engine(place, request):
    """Return a function that opens the engine on the same place each time."""

    def run(work, clock=None):
        async def opened():
            async with (
                asyncio.timeout(20),
                ENGINES[request.param](place, clock=clock) as database,
            ):
                return await work(database)

        return asyncio.run(opened())

    return run


def test_a_database_keeps_its_identity(engine):
    async def look(database):
        return database.uuid, type(database.name)

    (first, name), (second, _) = engine(look), engine(look)
    assert first == second
    assert len(first) == 16
    assert name is str


def test_statements_of_a_transaction(engine):
    async def work(database):
        found = await database.write(use_everything, 1, None)
        assert found[:5] == [None, (3,), (2**62,), 3, 0]
        first, everything = found[5]
        assert first == [(0,)]
        assert everything == [
            *((f"m{n}", n + (n >= 3)) for n in range(5)),
            ("é ☃", 2**62 + 1),
        ]
        assert found[6] == []
        assert await database.read(rows, 1, None) == everything

    engine(work)


def test_what_a_unit_refuses_with_arrives_and_undoes_it_alone(engine):
    async def work(database):
        found = await asyncio.gather(
            database.write(add, 0, "a"),
            database.write(add_then_refuse, 0, "b"),
            database.write(add, 0, "c"),
            return_exceptions=True,
        )
        error = found.pop(1)
        assert isinstance(error, MailError)
        assert (error.kind, error.text) == (Kind.OVER_QUOTA, "it is full")
        assert error.details == {"limit": 7}
        assert sorted(found) == [0, 1]
        assert [n for n, _ in await database.read(rows, 0, None)] == ["a", "c"]

    engine(work)


def test_concurrent_callers_share_commits_and_the_moment(engine):
    async def work(database):
        commits, units = (c.labels(database.name)._value for c in (COMMITS, UNITS))
        before, done = commits.get(), units.get()
        many = [database.write(add, 0, f"{n:03}") for n in range(100)]
        moments = [database.write(moment, 0, None) for _ in range(100)]
        await asyncio.gather(*many)
        times = await asyncio.gather(*moments)
        assert units.get() - done >= 200
        assert 1 <= commits.get() - before <= 50
        assert len(set(times)) <= 50
        assert times == sorted(times)

    engine(work, Ticking())


def test_a_reader_sees_every_commit_whole_and_in_the_order_of_the_units(engine):
    """A row's position counts the rows before it: never is there a gap."""

    async def work(database):
        names = itertools.count()
        done = False

        async def write(unit):
            for _ in range(25):
                await database.write(unit, 0, f"{next(names):04}")

        async def look(unit):
            seen = 0
            while not done:
                found = await database.read(unit, 0, None)
                positions = sorted(position for _, position in found)
                assert positions == list(range(len(found)))
                assert len(found) >= seen
                seen = len(found)
                await asyncio.sleep(0)

        looking = [asyncio.create_task(look(unit)) for unit in (rows, rows_in_thread)]
        await asyncio.gather(*(write(unit) for unit in (add, add, add_heavily)))
        done = True
        await asyncio.gather(*looking)
        assert len(await database.read(rows, 0, None)) == 75

    engine(work)


def test_an_idle_database_is_not_stuck(engine):
    async def work(database):
        assert database.stuck_for() == 0
        writing = [
            asyncio.create_task(database.write(add, 0, f"{n}")) for n in range(50)
        ]
        while not all(task.done() for task in writing):
            assert 0 <= database.stuck_for() < 20
            await asyncio.sleep(0)
        assert database.stuck_for() == 0

    engine(work)


def test_close_finishes_what_is_pending(engine):
    async def write(database):
        tasks = [
            asyncio.create_task(database.write(add, 0, f"{n:03}")) for n in range(200)
        ]
        reading = asyncio.create_task(database.read(rows_in_thread, 0, None))
        await asyncio.sleep(0)
        await database.close()
        await reading
        found = await asyncio.gather(*tasks)
        with pytest.raises(MailError) as caught:
            await database.write(add, 0, "late")
        assert caught.value.kind is Kind.UNAVAILABLE
        return found

    assert sorted(engine(write)) == list(range(200))

    async def look(database):
        return await database.read(rows, 0, None)

    assert len(engine(look)) == 200


def test_a_caller_that_goes_away_harms_nobody(engine):
    async def work(database):
        tasks = [
            asyncio.create_task(database.write(add, 0, f"{n:03}")) for n in range(60)
        ]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        there = {name for name, _ in await database.read(rows, 0, None)}
        for number, result in enumerate(found):
            if not isinstance(result, BaseException):
                assert f"{number:03}" in there
            else:
                assert number % 3 == 0
        positions = sorted(p for _, p in await database.read(rows, 0, None))
        assert positions == list(range(len(there)))

    engine(work)


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_engine_is_a_temporary_error_and_never_an_empty_answer(engine, mode):
    async def work(database):
        failing = FailingDatabase(database, mode, seed=2)
        acknowledged = set()
        await database.write(add, 0, "first")

        async def write(name):
            try:
                await failing.write(add, 0, name)
            except MailError as error:
                assert error.temporary
            else:
                acknowledged.add(name)

        async def read():
            try:
                assert ("first", 0) in await failing.read(rows, 0, None)
            except MailError as error:
                assert error.temporary

        writes = [write(f"{n:02}") for n in range(20)]
        await asyncio.gather(*writes, *(read() for _ in range(10)))
        assert failing.failed
        found = await database.read(rows, 0, None)
        there = {name for name, _ in found} - {"first"}
        assert acknowledged <= there
        assert sorted(position for _, position in found) == list(range(len(found)))
        expected = {"always": (0, 0), "slowly": (20, 20), "after": (0, 20)}
        if mode in expected:
            assert (len(acknowledged), len(there)) == expected[mode]

    engine(work)


def test_a_reader_sees_what_returned_to_any_process(place):
    async def whole():
        url = await databases.engine_of(place).prepare(place, "shard", "shard")
        async with asyncio.timeout(20):
            database = await databases.make(place, "shard")
            reader = await open_reader(url, "shard", SystemClock(), name="reader")
            assert reader.uuid == database.uuid
            for number in range(20):
                await database.write(add, 0, f"{number:02}")
                for unit in (rows, rows_in_thread):
                    found = await reader.read(unit, 0, None)
                    assert len(found) == number + 1
            await reader.close()
            with pytest.raises(MailError) as caught:
                await reader.read(rows, 0, None)
            assert caught.value.kind is Kind.UNAVAILABLE
            await database.close()

    asyncio.run(whole())


def test_a_store_finds_each_account_on_its_shard(place):
    homes = {1: 0, 2: 1, 3: 1}

    def locate(account):
        if account not in homes:
            raise MailError(Kind.NOT_FOUND, "no such account")
        return homes[account]

    async def whole():
        shards = [await databases.make(place, "shard", name=f"s{n}") for n in (0, 1)]
        store = Shards(shards, locate)
        for account, home in homes.items():
            assert store.shard_of(account) == home
            await store.write(system(account), add, f"of {account}")
        for number, names in enumerate((["of 1"], ["of 2", "of 3"])):
            found = await shards[number].read(rows, 0, None)
            assert [name for name, _ in found] == names
        assert len(await store.read(system(3), rows, None)) == 2
        for call in (
            lambda: store.write(system(9), add, "x"),
            lambda: store.read(system(9), rows, None),
        ):
            with pytest.raises(MailError) as caught:
                await call()
            assert caught.value.kind is Kind.NOT_FOUND
        with pytest.raises(MailError):
            store.shard_of(9)
        await store.close()

    asyncio.run(whole())
