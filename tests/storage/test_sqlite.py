"""The SQLite engine: batches, savepoints, faults, durability."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from storage.engines import migrate_database, open_database
from storage.metadata import sqlite as engine
from storage.metadata.lease import Lease
from storage.metadata.sql import heavy
from storage.metadata.sqlite import COMMITS, SqliteDatabase
from storage.metadata.sqlite_file import Readers
from tests.lib import sqlite_units as units

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.lib.sqlite_units"]
LIMIT = 30.0  # seconds: for hangs


def make(path: pathlib.Path) -> str:
    """Create an empty database of numbers."""
    file = path / "numbers.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(units.SCHEMA)
        connection.commit()
    return str(file)


def run(
    path: pathlib.Path, scenario: Callable[[SqliteDatabase], Awaitable[None]]
) -> None:
    """Run a scenario on a new database; its limit is for hangs."""

    async def whole() -> None:
        database = SqliteDatabase(make(path), SystemClock(), name=path.name)
        async with asyncio.timeout(LIMIT):
            await scenario(database)
            await database.close()

    asyncio.run(whole())


async def results(*awaitables: Awaitable[Any]) -> list[Any]:
    """Gather results, and for MailErrors their kind."""
    found = await asyncio.gather(*awaitables, return_exceptions=True)
    return [e.kind if isinstance(e, MailError) else e for e in found]


def wal_size(db: SqliteDatabase) -> int:
    """Return the octets of the write-ahead log; 0 when there is none."""
    file = pathlib.Path(f"{db.path}-wal")
    return file.stat().st_size if file.exists() else 0


def test_units_of_concurrent_callers_share_a_commit(tmp_path: pathlib.Path) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        commits = COMMITS.labels(tmp_path.name)._value.get

        async def producer(first: int) -> None:
            for n in range(first, first + 20):
                assert await db.write(units.add, 0, n) == n

        await asyncio.gather(*(producer(w * 100) for w in range(50)))
        assert commits() <= 0.05 * 1000
        assert len(await db.read(units.numbers, 0, None)) == 1000

    run(tmp_path, scenario)


def test_reads_see_every_write_that_returned(tmp_path: pathlib.Path) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        for n in range(50):
            await db.write(units.add, 0, n)
            for read in (units.numbers, units.numbers_in_thread):
                assert (await db.read(read, 0, None))[-1] == n

    run(tmp_path, scenario)


def test_a_failing_unit_undoes_itself_alone(tmp_path: pathlib.Path) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        def refuse() -> None:
            raise MailError(Kind.OVER_QUOTA)

        def stop() -> None:
            raise StopIteration

        def interrupt() -> None:
            raise KeyboardInterrupt

        found = await results(
            db.write(units.add, 0, 1),
            db.write(units.add_then, 0, (2, refuse)),
            db.write(units.add, 0, 1),  # a constraint
            db.write(units.add_then, 0, (3, lambda: 1 / 0)),
            db.write(units.add_then, 0, (4, stop)),
            db.write(units.add_then, 0, (5, interrupt)),
            db.write(units.add, 0, 6),
        )
        assert found[0] == 1
        assert found[1] is Kind.OVER_QUOTA
        assert found[2] is Kind.INTERNAL
        assert isinstance(found[3], ZeroDivisionError)
        assert found[4:6] == [Kind.INTERNAL, Kind.INTERNAL]
        assert found[6] == 6
        assert await db.read(units.numbers, 0, None) == [1, 6]

    run(tmp_path, scenario)


def test_a_batch_that_is_lost_is_rerun_unit_by_unit(tmp_path: pathlib.Path) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        found = await results(
            db.write(units.add, 0, 1),
            db.write(units.add_then_roll_back, 0, 2),
            db.write(units.add, 0, 3),
            db.write(units.add, 0, 3),
        )
        assert found[0] == 1
        assert found[1] in {Kind.INTERNAL, Kind.UNAVAILABLE}
        assert found[2:] == [3, Kind.INTERNAL]
        assert await db.read(units.numbers, 0, None) == [1, 3]
        assert await db.write(units.add, 0, 4) == 4

    run(tmp_path, scenario)


def test_a_full_database_fails_what_does_not_fit_and_goes_on(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        await db.write(units.add, 0, 1)
        db._writer.execute("PRAGMA max_page_count=20")
        found = await results(
            db.write(units.add, 0, 2),
            db.write(units.add_body, 3, b"x" * 200_000),
            db.write(units.add, 0, 4),
        )
        assert found == [2, Kind.STORAGE_FULL, 4]
        assert await db.read(units.numbers, 0, None) == [1, 2, 4]
        db._writer.execute("PRAGMA max_page_count=100000")
        await db.write(units.add_body, 3, b"x" * 200_000)

    run(tmp_path, scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_loses_nothing_that_was_acknowledged(
    tmp_path: pathlib.Path,
) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    make(tmp_path)
    script = (
        'mount -t tmpfs -o size=3m none "$0" && cp "$1" "$0/numbers.db" && '
        'head -c 500000 /dev/zero > "$0/ballast" && shift && exec "$@"'
    )
    program = [*PROGRAM, str(mount / "numbers.db"), "fill"]
    command = ["unshare", "-m", "sh", "-c", script, str(mount)]
    done = subprocess.run(
        [*command, str(tmp_path / "numbers.db"), *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "survived" in done.stdout


def test_a_fault_of_the_writer_itself_ends_its_batch_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite that lacks memory makes the driver raise MemoryError."""

    async def scenario(db: SqliteDatabase) -> None:
        def fail() -> None:
            monkeypatch.undo()
            raise MemoryError

        monkeypatch.setattr(db, "_try_commit", fail)
        found = await results(db.write(units.add, 0, 1))
        assert isinstance(found[0], MemoryError)
        assert await db.write(units.add, 0, 2) == 2
        assert await db.read(units.numbers, 0, None) == [2]

    run(tmp_path, scenario)


def test_an_io_error_is_temporary(tmp_path: pathlib.Path) -> None:
    """The file size limit makes real writes fail with EFBIG."""

    async def scenario(db: SqliteDatabase) -> None:
        await db.write(units.add, 0, 1)
        size = wal_size(db)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        try:
            found = await results(*(db.write(units.add, 0, n) for n in (2, 3)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert found == [Kind.UNAVAILABLE, Kind.UNAVAILABLE]
        assert await db.read(units.numbers, 0, None) == [1]
        assert await db.write(units.add, 0, 4) == 4

    run(tmp_path, scenario)


def test_a_foreign_lock_is_waited_for_in_the_thread(tmp_path: pathlib.Path) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        foreign = sqlite3.connect(db.path, isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        writes = asyncio.gather(*(db.write(units.add, 0, n) for n in range(3)))
        longest = 0.0
        for _ in range(20):
            started = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - started)
            assert await db.read(units.numbers, 0, None) == []
        assert not writes.done()
        assert longest < 0.2
        assert db.stuck_for() > 0.1
        foreign.execute("ROLLBACK")
        foreign.close()
        assert await writes == [0, 1, 2]
        assert db.stuck_for() == 0

    run(tmp_path, scenario)


def test_cancelled_callers_withdraw_what_did_not_run(tmp_path: pathlib.Path) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        tasks = [asyncio.create_task(db.write(units.add, 0, n)) for n in range(10)]
        slow = asyncio.create_task(db.write(units.add_slowly, 0, 99))
        await asyncio.sleep(0)
        for task in (*tasks[::2], slow):
            task.cancel()
        found = await asyncio.gather(*tasks, slow, return_exceptions=True)
        assert [f for f in found if isinstance(f, int)] == [1, 3, 5, 7, 9]
        assert await db.read(units.numbers, 0, None) == [1, 3, 5, 7, 9]

    run(tmp_path, scenario)


def test_a_caller_cancelled_during_the_commit_harms_nobody(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        slow = asyncio.create_task(db.write(units.add_slowly, 0, 1))
        await asyncio.sleep(0.02)
        slow.cancel()
        assert await db.write(units.add, 0, 2) == 2
        assert await db.read(units.numbers, 0, None) == [1, 2]

    run(tmp_path, scenario)


def test_heavy_and_light_units_take_turns(tmp_path: pathlib.Path) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        order: list[int] = []
        begun, gate = threading.Event(), threading.Event()

        async def one(unit: Any, n: int) -> None:
            await db.write(unit, 0, n)
            order.append(n)

        @heavy
        def held(tx: Any, account: int, n: int) -> None:
            begun.set()
            gate.wait(LIMIT)
            units.add(tx, account, n)

        tasks = [asyncio.create_task(one(held, n)) for n in (1, 2, 3)]
        assert await asyncio.to_thread(begun.wait, LIMIT)
        tasks += [asyncio.create_task(one(units.add, n)) for n in (11, 12)]
        assert await db.read(units.numbers, 0, None) == []
        assert not order  # reading waits for no writer
        gate.set()
        await asyncio.gather(*tasks)
        assert order == [1, 11, 12, 2, 3]

    run(tmp_path, scenario)


def test_readers_cannot_write(tmp_path: pathlib.Path) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        for mark in (units.add_in_reader, units.inline(units.add_in_reader)):
            assert await results(db.read(mark, 0, 1)) != [None]
        assert await db.read(units.numbers, 0, None) == []

    run(tmp_path, scenario)


def test_a_reader_that_takes_too_long_is_stopped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.metadata.sqlite_file.WATCH_EVERY", 0.05)

    async def scenario() -> None:
        readers = Readers(make(tmp_path), "numbers", SystemClock(), limit=0.2)
        async with asyncio.timeout(10):
            found = await results(*(readers.run(units.read_for_ever, 0, None),) * 1)
            assert found == [Kind.UNAVAILABLE]
            assert await readers.run(units.numbers, 0, None) == []
        readers.close()

    asyncio.run(scenario())


def test_a_reader_whose_caller_has_gone_is_stopped_too(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.metadata.sqlite_file.WATCH_EVERY", 0.05)

    async def scenario() -> None:
        readers = Readers(make(tmp_path), "numbers", SystemClock(), limit=0.5)
        task = asyncio.create_task(readers.run(units.read_for_ever, 0, None))
        async with asyncio.timeout(10):
            while not readers._running:  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            try:
                while readers._running:  # noqa: ASYNC110 - of another thread
                    await asyncio.sleep(0.01)
            finally:  # or the thread would outlive a failed test
                for _, tx, connection in readers._running.values():
                    tx.expire()
                    connection.interrupt()
        readers.close()

    asyncio.run(scenario())


def test_close_finishes_what_waits_and_refuses_the_rest(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(db: SqliteDatabase) -> None:
        tasks = [asyncio.create_task(db.write(units.add, 0, n)) for n in range(10)]
        tasks.append(asyncio.create_task(db.write(units.add_slowly, 0, 10)))
        await asyncio.sleep(0)
        await db.close()
        assert all(task.done() for task in tasks)
        with contextlib.closing(sqlite3.connect(db.path)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM number").fetchone()
        assert count == 11
        assert wal_size(db) == 0
        assert await results(db.write(units.add, 0, 11)) == [Kind.UNAVAILABLE]
        assert await results(db.read(units.numbers, 0, None)) == [Kind.UNAVAILABLE]
        await db.close()

    run(tmp_path, scenario)


def test_waiting_units_are_bounded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_PENDING", 3)

    async def scenario(db: SqliteDatabase) -> None:
        found = await results(*(db.write(units.add, 0, n) for n in range(5)))
        assert found == [0, 1, 2, Kind.UNAVAILABLE, Kind.UNAVAILABLE]

    run(tmp_path, scenario)


# --- ownership and identity --------------------------------------------------


def test_one_process_owns_a_file(tmp_path: pathlib.Path) -> None:
    path = make(tmp_path)
    program = [*PROGRAM, path, "acknowledge", "1", "100000"]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(MailError) as caught:
                SqliteDatabase(path, SystemClock())
            assert caught.value.kind is Kind.UNAVAILABLE
            assert str(other.pid) in caught.value.text
        finally:
            other.kill()
    os.symlink(path, f"{path}.link")
    database = SqliteDatabase(path, SystemClock())
    with pytest.raises(MailError):
        SqliteDatabase(f"{path}.link", SystemClock())
    asyncio.run(database.close())


def test_a_file_is_owned_also_where_nothing_can_be_written(
    tmp_path: pathlib.Path,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        lease = Lease(f"{tmp_path}/numbers.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(MailError, match="in use"):
        Lease(f"{tmp_path}/numbers.db")
    lease.release()
    Lease(f"{tmp_path}/numbers.db").release()


def test_only_a_database_of_the_right_kind_and_schema_is_opened(
    tmp_path: pathlib.Path,
) -> None:
    clock = SystemClock()
    url = f"sqlite:///{tmp_path}/queue.db"

    def refusal(kind: str) -> str:
        with pytest.raises(MailError) as caught:
            asyncio.run(open_database(url, kind, clock, name="x"))
        assert caught.value.kind is Kind.UNAVAILABLE
        return caught.value.text

    assert "mailserverd storage migrate" in refusal("queue")
    assert not (tmp_path / "queue.db").exists()
    (tmp_path / "queue.db").touch()
    assert "mailserverd storage migrate" in refusal("queue")
    made = asyncio.run(migrate_database(url, "queue", clock))
    assert made.before == 0
    assert "holds a queue" in refusal("shard")

    async def opened() -> bytes:
        database = await open_database(url, "queue", clock, name="x")
        await database.close()
        return database.uuid

    assert asyncio.run(opened()) == made.meta.uuid
    assert len(made.meta.uuid) == 16

    def change(**values: int) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
            for column, value in values.items():
                connection.execute(f"UPDATE meta SET {column} = ?", (value,))
            connection.commit()

    change(schema_version=99)  # expanded by a newer release, which we still fit
    assert asyncio.run(opened()) == made.meta.uuid
    change(needs_version=99)
    assert "newer" in refusal("queue")
    change(schema_version=0, needs_version=0)
    assert "migrate" in refusal("queue")


def test_files_are_private_and_garbage_is_refused(tmp_path: pathlib.Path) -> None:
    url = f"sqlite:///{tmp_path}/shard.db"
    old = os.umask(0)
    try:
        asyncio.run(migrate_database(url, "directory", SystemClock()))
    finally:
        os.umask(old)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    (tmp_path / "shard.db").write_bytes(b"no database" * 1000)
    with pytest.raises(MailError) as caught:
        asyncio.run(open_database(url, "directory", SystemClock(), name="x"))
    assert caught.value.kind is Kind.UNAVAILABLE


# --- durability --------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 40, 150])
def test_what_was_acknowledged_survives_kill_9(
    tmp_path: pathlib.Path, after: int
) -> None:
    path = make(tmp_path)
    program = [*PROGRAM, path, "acknowledge", "10", "100000"]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(after)]
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split(b"\n")
    acknowledged += [int(line) for line in rest[:-1]]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        kept = {n for (n,) in connection.execute("SELECT n FROM number")}
    assert verdict == "ok"
    assert set(acknowledged) <= kept


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_the_log_is_synced_before_each_answer(tmp_path: pathlib.Path) -> None:
    """In the trace of system calls no answer comes after an unsynced log write."""
    path, trace = make(tmp_path), tmp_path / "trace"
    calls = "trace=pwrite64,pwritev,write,fdatasync,fsync"
    program = [*PROGRAM, path, "acknowledge", "5", "40"]
    subprocess.run(
        ["strace", "-f", "-y", "-s", "12", "-o", str(trace), "-e", calls, *program],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    writes = answers = syncs = unsynced = 0
    syncing: dict[str, int] = {}  # by thread: what its sync covers
    for line in trace.read_text().splitlines():
        pid = line.partition(" ")[0]
        if re.search(r"pwrite\w*\(\d+<[^>]*-wal>", line):
            writes += 1
            unsynced += 1
        elif re.search(r"f(data)?sync\(\d+<[^>]*-wal>", line):
            syncing[pid] = unsynced
        elif re.search(r' write\(1<[^"]*"\d+\\n"', line):
            answers += 1
            assert not unsynced, line
        elif '"end' in line:
            break
        if pid in syncing and "sync" in line and line.endswith("= 0"):
            unsynced -= syncing.pop(pid)
            syncs += 1
    assert answers == 200
    assert writes >= syncs > 0
    assert syncs <= 0.5 * answers  # group commit: several answers per sync
