"""A SQLite database with one batching writer (DESIGN decision 8).

Statements of a batch run on the event loop (2-3 us each; in a thread every one of
them would compete for the GIL), only COMMIT, which syncs, runs in a thread.  Units
that arrive during a commit form the next batch.  Units marked ``heavy`` run in the
writer thread altogether, reads in a small pool unless marked ``inline``.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter, histogram
from storage.metadata.lease import Lease
from storage.metadata.meta import EMPTY as EMPTY_META
from storage.metadata.meta import check_meta, read_meta
from storage.metadata.sql import EMPTY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Row, Work

A = TypeVar("A")
R = TypeVar("R")
log = get_logger("storage")

COMMITS = counter("metadata_commits", "Commits, each one sync", ("database",))
UNITS = counter("metadata_units", "Units of work committed", ("database",))
COMMIT_SECONDS = histogram("metadata_commit_seconds", "Time of one commit")

PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=OFF",
    "PRAGMA busy_timeout=5000",
    "PRAGMA wal_autocheckpoint=8000",
    "PRAGMA journal_size_limit=67108864",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cache_size=-8000",
)
READERS = 2
MAX_HOLD = 0.008  # seconds of statements on the loop before a batch is committed


class SqliteTx:
    """The transaction as a unit sees it: thin calls to the driver."""

    __slots__ = ("_execute", "_many", "now")

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self._execute = connection.execute
        self._many = connection.executemany
        self.now = now

    def all(self, statement: Any, params: Mapping[str, object] = EMPTY) -> list[Row]:
        """Return all rows."""
        return self._execute(statement.sqlite, params).fetchall()

    def one(self, statement: Any, params: Mapping[str, object] = EMPTY) -> Row | None:
        """Return the first row, or None."""
        row: Row | None = self._execute(statement.sqlite, params).fetchone()
        return row

    def run(self, statement: Any, params: Mapping[str, object] = EMPTY) -> int:
        """Execute and return the number of rows it touched."""
        return self._execute(statement.sqlite, params).rowcount

    def many(self, statement: Any, rows: Sequence[Mapping[str, object]]) -> None:
        """Execute once per row."""
        self._many(statement.sqlite, rows)


@dataclasses.dataclass(slots=True)
class _Unit:
    work: Work[Any, Any]
    account: int
    args: Any
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class SqliteDatabase:
    """One SQLite file, owned by this process.

    With a ``kind`` the file must hold a database of that kind at this release's
    schema (UNAVAILABLE says what to run otherwise), and ``uuid`` is its identity.
    """

    def __init__(
        self, path: str, clock: Clock, *, name: str = "shard", kind: str = ""
    ) -> None:
        self.path = path
        self.uuid = b""
        self.name = name
        self._clock = clock
        self._pending: collections.deque[_Unit] = collections.deque()
        self._busy = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._lease = Lease(path)
        try:
            self._writer = self._open(kind)
            self._inline = connect(path)
        except BaseException:
            self._lease.release()
            raise
        thread = concurrent.futures.ThreadPoolExecutor
        self._commits = thread(1, f"{name}-commit")
        self._reads = thread(READERS, f"{name}-read")
        self._free: collections.deque[sqlite3.Connection] = collections.deque()
        self._labels = (COMMITS.labels(name), UNITS.labels(name))

    def _open(self, kind: str) -> sqlite3.Connection:
        """Open the writer's connection on a database that passes its checks."""
        try:
            if kind and not os.path.exists(self.path):
                check_meta(EMPTY_META, kind, self.path)
            connection = connect(self.path)
            if kind:
                meta = read_meta(connection)
                check_meta(meta, kind, self.path)
                self.uuid = meta.uuid
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        return connection

    async def write(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a writing unit; durable when it returns."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "shutting down")
        loop = asyncio.get_running_loop()
        unit = _Unit(work, account, args, loop.create_future())
        self._pending.append(unit)
        if not self._busy:
            self._busy = True
            self._idle.clear()
            loop.call_soon(self._next_batch)
        result: R = await unit.done
        return result

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit on one snapshot."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "shutting down")
        if getattr(work, "inline", False):
            return self._snapshot(self._inline, work, account, args)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._reads, self._pooled_read, work, account, args
        )

    async def close(self) -> None:
        """Finish what is pending, then close."""
        self._closed = True
        await self._idle.wait()
        await asyncio.to_thread(self._reads.shutdown)
        await asyncio.to_thread(self._commits.shutdown)
        for connection in (self._writer, self._inline, *self._free):
            connection.close()
        self._lease.release()

    # --- reading --------------------------------------------------------------

    def _pooled_read(self, work: Work[A, R], account: int, args: A) -> R:
        connection = self._free.pop() if self._free else connect(self.path)
        try:
            return self._snapshot(connection, work, account, args)
        finally:
            self._free.append(connection)

    def _snapshot(
        self, connection: sqlite3.Connection, work: Work[A, R], account: int, args: A
    ) -> R:
        try:
            connection.execute("BEGIN")
            try:
                return work(SqliteTx(connection, self._clock.now()), account, args)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise translate(error, self.name) from error

    # --- writing --------------------------------------------------------------

    def _next_batch(self) -> None:
        if not self._pending:
            self._busy = False
            self._idle.set()
            return
        loop = asyncio.get_running_loop()
        if getattr(self._pending[0].work, "heavy", False):
            units = [self._pending.popleft()]
            future = loop.run_in_executor(self._commits, self._run_and_commit, units)
        else:
            units = self._run_light()
            future = loop.run_in_executor(self._commits, self._commit, units)
        future.add_done_callback(lambda _: self._finish(units))

    def _run_light(self) -> list[_Unit]:
        """Run waiting light units, in order, for at most MAX_HOLD seconds."""
        units: list[_Unit] = []
        tx = self._begin(units)
        until = time.monotonic() + MAX_HOLD
        while self._pending and not getattr(self._pending[0].work, "heavy", False):
            unit = self._pending.popleft()
            units.append(unit)
            if tx is not None and not self._run(tx, unit):
                break  # SQLite rolled the whole batch back: _commit reruns it
            if time.monotonic() > until:
                break
        return units

    def _begin(self, units: list[_Unit]) -> SqliteTx | None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            return None  # _commit sees no transaction, and reruns units one by one
        return SqliteTx(self._writer, self._clock.now())

    def _run(self, tx: SqliteTx, unit: _Unit) -> bool:
        """Run one unit in a savepoint; False when the transaction itself is gone."""
        execute = self._writer.execute
        try:
            execute("SAVEPOINT u")
            unit.result = unit.work(tx, unit.account, unit.args)
            execute("RELEASE u")
        except BaseException as error:
            unit.error = error
            if not self._writer.in_transaction:
                return False
            execute("ROLLBACK TO u")
            execute("RELEASE u")
        return True

    def _run_and_commit(self, units: list[_Unit]) -> None:
        tx = self._begin(units)
        if tx is not None:
            for unit in units:
                if not self._run(tx, unit):
                    break
        self._commit(units)

    def _commit(self, units: list[_Unit]) -> None:
        """Commit the batch; if it is lost as a whole, rerun its units alone."""
        started = time.monotonic()
        try:
            if not self._writer.in_transaction:
                raise sqlite3.OperationalError("transaction rolled back")
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            log.warning("batch-lost", database=self.name, error=str(error))
            for unit in units:
                self._rerun(unit, error)
        COMMIT_SECONDS.observe(time.monotonic() - started)
        self._labels[0].inc()
        self._labels[1].inc(len(units))

    def _rerun(self, unit: _Unit, cause: sqlite3.Error) -> None:
        unit.result = unit.error = None
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            tx = SqliteTx(self._writer, self._clock.now())
            unit.result = unit.work(tx, unit.account, unit.args)
            self._writer.execute("COMMIT")
        except BaseException as error:
            self._rollback()
            unit.error = error
            log.exception(
                "unit-failed", database=self.name, error=str(error), batch=str(cause)
            )

    def _rollback(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _finish(self, units: list[_Unit]) -> None:
        for unit in units:
            if unit.done.done():
                continue  # its caller was cancelled; what was committed stays
            if unit.error is None:
                unit.done.set_result(unit.result)
            elif isinstance(unit.error, sqlite3.Error):
                failure = translate(unit.error, self.name)
                failure.__cause__ = unit.error
                unit.done.set_exception(failure)
            else:
                unit.done.set_exception(unit.error)
        self._next_batch()


def connect(path: str) -> sqlite3.Connection:
    """Open a connection as every part of the daemon uses it (autocommit, WAL)."""
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    for pragma in PRAGMAS:
        connection.execute(pragma)
    return connection


def translate(error: sqlite3.Error, name: str) -> MailError:
    """Turn a driver error into a temporary error; the cause stays in the log."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    log.error("database-error", database=name, code=code, error=str(error))
    if code == sqlite3.SQLITE_FULL:
        return MailError(Kind.STORAGE_FULL, "storage is full")
    if code in {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR}:
        return MailError(Kind.INTERNAL)
    return MailError(Kind.UNAVAILABLE, "storage is temporarily unavailable")
