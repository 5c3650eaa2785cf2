"""Connections to one SQLite file: settings, transactions as units see them, readers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from storage.metadata.sql import EMPTY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Params, Row, Work

A = TypeVar("A")
R = TypeVar("R")
log = get_logger("storage")

PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=OFF",
    "PRAGMA wal_autocheckpoint=8000",  # pages: +45 % deliveries over 1000
    "PRAGMA journal_size_limit=67108864",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA secure_delete=FAST",  # Debian's default overwrites, twice the log
)
WRITER_CACHE, READER_CACHE = 8000, 4000  # KiB
READERS = 2
READ_LIMIT = 30.0  # seconds: a snapshot kept longer lets the log grow without end
WATCH_EVERY = 1.0  # seconds between looks at readers
WAITS = 5000  # ms that a thread waits for a lock; the loop never waits


class SqliteTx:
    """The transaction as a unit sees it: thin calls to the driver."""

    __slots__ = ("_execute", "_many", "now")

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self._execute = connection.execute
        self._many = connection.executemany
        self.now = now

    def all(self, statement: Any, params: Params = EMPTY) -> list[Row]:
        """Return all rows."""
        return self._execute(statement.sqlite, params).fetchall()

    def one(self, statement: Any, params: Params = EMPTY) -> Row | None:
        """Return the first row, or None."""
        row: Row | None = self._execute(statement.sqlite, params).fetchone()
        return row

    def each(self, *asked: tuple[Any, Params]) -> list[list[Row]]:
        """Return the rows of several SELECTs."""
        execute = self._execute
        return [
            execute(statement.sqlite, params).fetchall() for statement, params in asked
        ]

    def run(self, statement: Any, params: Params = EMPTY) -> int:
        """Execute and return the number of rows it touched."""
        return self._execute(statement.sqlite, params).rowcount

    def many(self, statement: Any, rows: Sequence[Params]) -> None:
        """Execute once per row."""
        self._many(statement.sqlite, rows)

    def expire(self) -> None:
        """Let every further statement fail."""
        self._execute = self._many = _expired


def _expired(*_: object) -> Any:
    raise sqlite3.OperationalError("interrupted: the transaction took too long")


def connect(
    path: str, *, waits: int = WAITS, cache: int = WRITER_CACHE
) -> sqlite3.Connection:
    """Open a connection as every part of the daemon uses it (autocommit, WAL)."""
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    try:
        connection.execute(f"PRAGMA busy_timeout={WAITS}")
        for pragma in (*PRAGMAS, f"PRAGMA cache_size=-{cache}"):
            connection.execute(pragma)
        connection.execute(f"PRAGMA busy_timeout={waits}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def connect_reader(path: str, *, waits: int = WAITS) -> sqlite3.Connection:
    """Open a connection that cannot write."""
    connection = connect(path, waits=waits, cache=READER_CACHE)
    connection.execute("PRAGMA query_only=ON")
    return connection


def snapshot(
    connection: sqlite3.Connection,
    tx: SqliteTx,
    work: Work[A, R],
    account: int,
    args: A,
) -> R:
    """Run a reading unit on one snapshot."""
    connection.execute("BEGIN")
    try:
        return work(tx, account, args)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
TEMPORARY = BUSY | {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for an error of the driver's own."""
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code


def translate(error: sqlite3.Error, name: str) -> MailError:
    """Turn a driver error into what callers may see; the cause goes to the log.

    STORAGE_FULL, UNAVAILABLE, or INTERNAL for a mistake of ours (constraint, SQL).
    """
    code = code_of(error)
    log.error("database-error", database=name, code=code, error=str(error))
    if code == sqlite3.SQLITE_FULL:
        return MailError(Kind.STORAGE_FULL, "storage is full")
    if code in TEMPORARY or "interrupted" in str(error):
        return MailError(Kind.UNAVAILABLE, "storage is temporarily unavailable")
    return MailError(Kind.INTERNAL)


class Readers:
    """A small pool of threads, each with its own connection, for reading units."""

    def __init__(
        self, path: str, name: str, clock: Clock, limit: float = READ_LIMIT
    ) -> None:
        self._path = path
        self._name = name
        self._clock = clock
        self._limit = limit
        self._threads = concurrent.futures.ThreadPoolExecutor(READERS, f"{name}-read")
        self._own = threading.local()
        self._connections: list[sqlite3.Connection] = []
        # by thread: when it began, and what to stop
        self._running: dict[int, tuple[float, SqliteTx, sqlite3.Connection]] = {}
        self._under_way = 0
        self._watch: asyncio.TimerHandle | None = None

    async def run(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit in a thread; UNAVAILABLE when it takes too long."""
        loop = asyncio.get_running_loop()
        self._under_way += 1
        if self._watch is None:
            self._watch = loop.call_later(WATCH_EVERY, self._look, loop)
        try:
            return await loop.run_in_executor(
                self._threads, self._read, work, account, args
            )
        except sqlite3.Error as error:
            raise translate(error, self._name) from error
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """Wait for what runs, then close all connections (blocking).

        In another thread than the loop's, what runs is watched to its end.
        """
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()

    def _read(self, work: Work[A, R], account: int, args: A) -> R:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = connect_reader(self._path)
            self._connections.append(connection)
        tx = SqliteTx(connection, self._clock.now())
        thread = threading.get_ident()
        self._running[thread] = (time.monotonic(), tx, connection)
        try:
            return snapshot(connection, tx, work, account, args)
        finally:
            del self._running[thread]

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop readers that keep their snapshot for too long."""
        self._watch = None
        now = time.monotonic()
        for began, tx, connection in tuple(self._running.values()):
            if now - began > self._limit:
                tx.expire()
                connection.interrupt()
                log.error("read-interrupted", database=self._name)
        if self._under_way or self._running:  # also when its caller has gone
            self._watch = loop.call_later(WATCH_EVERY, self._look, loop)
