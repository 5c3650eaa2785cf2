"""The PostgreSQL engine: batches, snapshots, faults."""

from __future__ import annotations

import asyncio
import resource
import time

import pytest
from structlog.testing import capture_logs

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from storage.engines import migrate_database, open_database, open_reader
from storage.metadata import postgresql, postgresql_reader
from storage.metadata.counters import COMMITS, LOST, TRIPS
from storage.metadata.postgresql_link import PATIENCE
from storage.metadata.postgresql_writer import LOCK
from tests.lib import postgresql_units as units
from tests.lib.postgresql import cluster, own_cluster
from tests.lib.sharing import pair


@pytest.fixture(scope="module")
def made():
    """A database with a table of numbers: (cluster, its name, its URL)."""
    server = cluster()
    name = server.database()
    url = server.url(name)
    asyncio.run(migrate_database(url, "shard", SystemClock()))
    for statement in units.SETUP:
        server.sql(statement, database=name)
    yield server, name, url
    server.drop(name)


@pytest.fixture
def place(made):
    """The same without numbers."""
    server, name, _ = made
    server.sql("TRUNCATE number", database=name)
    server.sql("ALTER SEQUENCE tries RESTART", database=name)
    return made


def run(url, scenario):
    """Run a scenario on the open database; its limit is for hangs."""

    async def whole():
        database = await open_database(url, "shard", SystemClock(), name="numbers")
        try:
            async with asyncio.timeout(60):
                await scenario(database)
        finally:
            await database.close()

    asyncio.run(whole())


async def results(*awaitables):
    """Gather results, and for MailErrors their kind."""
    found = await asyncio.gather(*awaitables, return_exceptions=True)
    return [e.kind if isinstance(e, MailError) else e for e in found]


class Counts:
    """What was counted since."""

    def __init__(self):
        self.labels = [one.labels("numbers") for one in (COMMITS, LOST, TRIPS)]
        self.before = [one._value.get() for one in self.labels]

    def __call__(self):
        now = [one._value.get() for one in self.labels]
        return [after - before for after, before in zip(now, self.before, strict=True)]


# --- batches ------------------------------------------------------------------------


def test_units_of_different_accounts_share_round_trips_and_a_commit(place):
    async def scenario(db):
        await db.write(units.add, 1, 0)
        counts = Counts()
        many = [db.write(units.add_and_count, n, n) for n in range(1, 101)]
        assert set(await asyncio.gather(*many)) == {1, 2}
        commits, lost, trips = counts()
        assert (commits, lost) == (1, 0)
        assert trips <= 6  # begin, two statements prepared and run, commit

    run(place[2], scenario)


def test_units_of_an_account_see_those_before_them(place):
    async def scenario(db):
        many = [db.write(units.add_and_count, 1 + n % 3, n) for n in range(30)]
        found = await asyncio.gather(*many)
        assert found == [1 + n // 3 for n in range(30)]

    run(place[2], scenario)


def test_nothing_runs_beside_a_unit_that_touches_several_accounts(place):
    async def scenario(db):
        found = await asyncio.gather(
            *(db.write(units.add_and_count, n, n) for n in range(1, 6)),
            db.write(units.add_for_all, 1, [1, 2, 3, 4, 5]),
            *(db.write(units.add_and_count, n, 10 + n) for n in range(1, 6)),
        )
        assert found == [1] * 5 + [[2] * 5] + [3] * 5

    run(place[2], scenario)


def test_nor_beside_one_that_another_process_sent(place):
    async def scenario():
        async with pair(place[2]) as (_, remote):
            found = await asyncio.gather(
                *(remote.write(units.add_and_count, n, n) for n in range(1, 6)),
                remote.write(units.add_for_all, 1, [1, 2, 3, 4, 5]),
                *(remote.write(units.add_and_count, n, 10 + n) for n in range(1, 6)),
            )
        assert found == [1] * 5 + [[2] * 5] + [3] * 5

    asyncio.run(scenario())


def test_a_unit_that_raises_undoes_itself_alone(place):
    async def scenario(db):
        found = await results(
            db.write(units.add, 1, 1),
            db.write(units.add_then_refuse, 2, 2),
            db.write(units.add, 3, 1),  # a constraint
            db.write(units.add_then_raise, 4, (4, ZeroDivisionError())),
            db.write(units.add_then_raise, 5, (5, StopIteration())),
            db.write(units.add_then_raise, 6, (6, KeyboardInterrupt())),
            db.write(units.refuse, 1, None),
            db.write(units.add, 7, 7),
        )
        assert found[0] == 1
        assert found[1:3] == [Kind.OVER_QUOTA, Kind.INTERNAL]
        assert isinstance(found[3], ZeroDivisionError)
        assert found[4:] == [Kind.INTERNAL, Kind.INTERNAL, Kind.NOT_FOUND, 7]
        assert await db.read(units.numbers, 0, None) == [1, 7]

    run(place[2], scenario)


def test_a_unit_that_keeps_refusing_costs_others_their_batch_once(place):
    async def scenario(db):
        counts = Counts()
        for first in range(0, 100, 10):
            found = await results(
                *(db.write(units.add, 100 + n, first + n) for n in range(9)),
                db.write(units.add_then_refuse, 7, first + 9),
            )
            assert found == [*(first + n for n in range(9)), Kind.OVER_QUOTA]
        assert counts()[:2] == [10, 1]
        assert await db.write(units.add, 7, 99) == 99

    run(place[2], scenario)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("53100", Kind.STORAGE_FULL),
        ("53300", Kind.UNAVAILABLE),
        ("57014", Kind.UNAVAILABLE),
        ("58030", Kind.UNAVAILABLE),
        ("25006", Kind.UNAVAILABLE),
        ("55P03", Kind.UNAVAILABLE),
        ("23514", Kind.INTERNAL),
        ("42P01", Kind.INTERNAL),
    ],
)
def test_an_error_of_the_server_fails_the_unit_that_met_it(place, code, kind):
    async def scenario(db):
        found = await results(
            db.write(units.add, 1, 1),
            db.write(units.add_then_fail, 2, (2, code)),
            db.write(units.add, 3, 3),
        )
        assert found == [1, kind, 3]
        with pytest.raises(MailError) as caught:
            await db.write(units.add_then_fail, 2, (2, code))
        assert caught.value.kind is kind
        assert await db.read(units.numbers, 0, None) == [1, 3]

    run(place[2], scenario)


@pytest.mark.parametrize("code", ["40001", "40P01", "57P01", "08006"])
def test_what_may_succeed_at_once_is_tried_again(place, code):
    async def scenario(db):
        found = await results(
            db.write(units.add, 1, 1),
            db.write(units.add_then_fail_once, 2, (2, code)),
            db.write(units.add, 3, 3),
        )
        assert found == [1, 2, 3]
        assert await db.read(units.numbers, 0, None) == [1, 2, 3]

    run(place[2], scenario)


def test_light_and_heavy_units_take_turns(place):
    async def scenario(db):
        heavy = [db.write(units.add_heavily, 1, n) for n in range(5)]
        light = [db.write(units.add, 1, n) for n in range(5, 30)]
        assert sorted(await asyncio.gather(*heavy, *light)) == list(range(30))
        assert await db.read(units.numbers, 0, None) == list(range(30))
        assert db.stuck_for() == 0.0

    run(place[2], scenario)


def test_a_caller_that_leaves_withdraws_what_has_not_begun(place):
    async def scenario(db):
        await db.write(units.add, 1, 0)
        first = asyncio.ensure_future(db.write(units.add_slowly, 1, (1, 0.3)))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(db.write(units.add, 1, 2))
        await asyncio.sleep(0)
        assert db.stuck_for() > 0
        second.cancel()
        assert await first == 1
        assert await db.write(units.add, 1, 3) == 3
        assert await db.read(units.numbers, 0, None) == [0, 1, 3]

    run(place[2], scenario)


def test_two_owners_of_a_database_do_not_interleave(place):
    """As after a takeover from a process that still lives."""

    async def scenario(one):
        other = await open_database(place[2], "shard", SystemClock(), name="other")
        try:
            many = [
                db.write(units.add_and_count, 1, 2 * n + which)
                for n in range(40)
                for which, db in enumerate((one, other))
            ]
            assert sorted(await asyncio.gather(*many)) == list(range(1, 81))
        finally:
            await other.close()

    run(place[2], scenario)


# --- reads ----------------------------------------------------------------------------


def test_a_unit_of_one_statement_costs_one_round_trip(place):
    async def scenario(db):
        await db.write(units.add_word, 1, (1, "b"))
        await db.write(units.add_word, 1, (2, "a"))
        for unit in (units.numbers, units.numbers_and_words, units.numbers_in_thread):
            await db.read(unit, 0, None)  # connections are opened
            counts = Counts()
            await db.read(unit, 0, None)
            assert counts()[2] == 1
        found = await db.read(units.numbers_and_words, 0, None)
        assert found == [[1, 2], ["a", "b"], []]

    run(place[2], scenario)


def test_several_statements_of_a_unit_see_one_snapshot(place):
    async def scenario(db):
        async def write():
            for n in range(60):
                await db.write(units.add, 1, n)

        async def look(writing):
            while not writing.done():
                assert await db.read(units.numbers_twice, 0, None)

        writing = asyncio.ensure_future(write())
        await asyncio.gather(writing, look(writing), look(writing))

    run(place[2], scenario)


def test_texts_sort_by_code_points_and_sums_are_integers(place):
    async def scenario(db):
        unsorted = ["é", "b", "a", "B", "A", "_", "z", "\U0001f600", "ä", "\uffff"]
        for n, word in enumerate(unsorted):
            await db.write(units.add_word, 1, (n, word))
        assert await db.read(units.words, 0, None) == sorted(unsorted)
        found = await db.read(units.summed, 0, None)
        assert (found, type(found)) == (45, int)

    run(place[2], scenario)


def test_a_text_with_a_nul_is_refused_as_such(place):
    async def scenario(db):
        found = await results(
            db.write(units.add_word, 1, (1, "a\0b")),
            db.write(units.add_word, 2, (2, "ab")),
        )
        assert found == [Kind.INVALID, True]

    run(place[2], scenario)


def test_a_reader_sees_what_the_owner_has_written(place):
    async def scenario(db):
        reader = await open_reader(place[2], "shard", SystemClock(), name="reader")
        assert reader.uuid == db.uuid
        for n in range(20):
            await db.write(units.add, 1, n)
            for unit in (units.numbers, units.numbers_in_thread):
                assert (await reader.read(unit, 0, None))[-1] == n
        await reader.close()
        with pytest.raises(MailError):
            await reader.read(units.numbers, 0, None)

    run(place[2], scenario)


# --- faults ---------------------------------------------------------------------------


def test_a_statement_that_hangs_is_unavailable(place, monkeypatch):
    monkeypatch.setattr(postgresql, "LIGHT_LIMIT", 0.5)
    monkeypatch.setattr(postgresql_reader, "LIMIT", 0.5)
    for module in ("postgresql_reader", "postgresql_writer"):
        monkeypatch.setattr(f"storage.metadata.{module}.PATIENCE", 0.1)

    async def scenario(db):
        began = time.monotonic()
        found = await results(
            db.read(units.wait, 0, 20), db.write(units.add_slowly, 1, (1, 20))
        )
        assert found == [Kind.UNAVAILABLE] * 2
        assert time.monotonic() - began < 5
        assert await db.write(units.add, 1, 2) == 2
        assert await db.read(units.numbers_in_thread, 0, None) == [2]

    run(place[2], scenario)


def test_who_waits_for_the_lock_too_long_is_unavailable(place, monkeypatch):
    monkeypatch.setattr(postgresql, "LIGHT_LIMIT", 0.5)
    monkeypatch.setattr("storage.metadata.postgresql_writer.PATIENCE", 0.1)
    server, name, url = place

    async def scenario(db):
        await db.write(units.add, 1, 1)
        asyncpg = pytest.importorskip("asyncpg")
        other = await asyncpg.connect(
            host=str(server.home), port=server.port, user="postgres", database=name
        )
        await other.execute(f"SELECT pg_advisory_lock({LOCK}, 0)")
        found = await results(db.write(units.add, 1, 2), db.write(units.add, 2, 3))
        assert found == [Kind.UNAVAILABLE] * 2
        assert await results(db.write(units.add, 1, 2)) == [Kind.UNAVAILABLE]
        await other.close()
        assert await db.write(units.add, 1, 4) == 4

    run(url, scenario)


def test_a_server_without_a_connection_left_is_unavailable(place):
    server, name, url = place
    database = f"ALTER DATABASE {name} CONNECTION LIMIT"

    async def scenario(db):
        assert await db.read(units.numbers, 0, None) == []
        server.sql(f"{database} 0")
        try:
            found = await results(db.write(units.add, 1, 1), db.write(units.add, 2, 2))
            assert found == [Kind.UNAVAILABLE] * 2
        finally:
            server.sql(f"{database} -1")
        assert await db.write(units.add, 1, 3) == 3

    run(url, scenario)


# asyncio itself stumbles when it gives up a loop that it could not make.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_without_a_file_left_is_unavailable(place):
    async def scenario(db):
        await db.write(units.add, 1, 7)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            assert await results(db.read(units.numbers_in_thread, 1, None)) == [
                Kind.UNAVAILABLE
            ]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await db.read(units.numbers_in_thread, 1, None)

    run(place[2], scenario)


def test_connections_that_are_ended_between_units_are_made_anew(place):
    server, name, url = place
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )

    async def scenario(db):
        for n in range(3):
            assert await db.write(units.add, 1, n) == n
            assert await db.write(units.add_heavily, 1, 10 + n) == 10 + n
            assert len(await db.read(units.numbers, 0, None)) == 2 * n + 2
            assert len(await db.read(units.numbers_in_thread, 0, None)) == 2 * n + 2
            assert await db.read(units.numbers_twice, 0, None)
            server.sql(end)

    run(url, scenario)


def test_a_server_that_is_away_is_unavailable_and_used_again_at_once(tmp_path):
    async def scenario(db, server):
        assert await db.write(units.add, 1, 1) == 1
        server.stop("immediate")
        began = time.monotonic()
        found = await results(
            db.write(units.add, 1, 2), db.read(units.numbers, 0, None)
        )
        assert found == [Kind.UNAVAILABLE] * 2
        assert time.monotonic() - began < PATIENCE + 5
        began = time.monotonic()
        assert await results(db.write(units.add, 1, 3)) == [Kind.UNAVAILABLE]
        assert time.monotonic() - began < 1  # it is known to be away
        with capture_logs() as lines:
            for _ in range(20):
                waiting = (db.write(units.add, 1, 3), db.read(units.numbers, 0, None))
                assert await results(*waiting) == [Kind.UNAVAILABLE] * 2
        assert len(lines) <= 2  # rather than a line per request
        await asyncio.to_thread(server.start)
        began = time.monotonic()
        assert await db.write(units.add, 1, 4) == 4
        assert await db.read(units.numbers, 0, None) == [1, 4]
        assert time.monotonic() - began < 2

    with own_cluster() as server:
        name = server.database()
        url = server.url(name)
        asyncio.run(migrate_database(url, "shard", SystemClock()))
        for statement in units.TABLE:
            server.sql(statement, database=name)
        run(url, lambda db: scenario(db, server))


def test_callers_wait_for_a_server_that_restarts(tmp_path):
    async def scenario(db, server):
        done = []
        under_way = asyncio.Event()

        async def sender(first):
            for n in range(first, first + 60):
                await db.write(units.add, first, n)
                done.append(n)
                if len(done) == 60:
                    under_way.set()

        async def disturb():
            await under_way.wait()
            await asyncio.to_thread(server.restart, "fast")

        await asyncio.gather(disturb(), *(sender(1000 * n) for n in range(1, 6)))
        assert await db.read(units.numbers, 0, None) == sorted(done)
        assert len(done) == 300

    with own_cluster() as server:
        name = server.database()
        url = server.url(name)
        asyncio.run(migrate_database(url, "shard", SystemClock()))
        for statement in units.TABLE:
            server.sql(statement, database=name)
        run(url, lambda db: scenario(db, server))
