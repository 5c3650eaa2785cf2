"""A SQLite database with one batching writer (DESIGN decision 8).

Statements of a batch run on the event loop (2-3 us each; in a thread every one of
them would compete for the GIL), only COMMIT, which syncs, runs in a thread.  Units
that arrive during a commit form the next batch.  Units marked ``heavy`` run in the
writer thread altogether, one by one, taking turns with batches of light ones; reads
in a small pool unless marked ``inline``.
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
from storage.metadata.counters import COMMIT_SECONDS, COMMITS, LOST, UNITS
from storage.metadata.lease import Lease
from storage.metadata.meta import EMPTY, check_meta, read_meta
from storage.metadata.sqlite_file import (
    BUSY,
    WAITS,
    Readers,
    SqliteTx,
    code_of,
    connect,
    connect_reader,
    snapshot,
    translate,
)

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock
    from storage.api import Work

A = TypeVar("A")
R = TypeVar("R")
log = get_logger("storage")

MAX_HOLD = 0.008  # seconds of statements on the loop before a batch is committed
CLOSE_WAITS = 200  # ms that closing waits for other processes' readers
MAX_PENDING = 20_000  # units that may wait
THREAD_BATCH = 200  # units of a batch that had to move to the thread


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

    A caller that is cancelled before its unit ran withdraws it; one that is
    cancelled later does not know whether it was committed.
    """

    def __init__(
        self, path: str, clock: Clock, *, name: str = "shard", kind: str = ""
    ) -> None:
        self.path = path
        self.name = name
        self.uuid = b""
        self._clock = clock
        self._light: collections.deque[_Unit] = collections.deque()
        self._heavy: collections.deque[_Unit] = collections.deque()
        self._heavy_next = False
        self._began = 0.0  # when the batch under way began; 0 while idle
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._labels = (COMMITS.labels(name), UNITS.labels(name))
        self._lease = Lease(path)
        try:
            self._open(kind)
        except sqlite3.Error as error:
            self._lease.release()
            problem = translate(error, path).kind
            raise MailError(problem, f"cannot open {path}: {error}") from error
        except BaseException:
            self._lease.release()
            raise
        self._commits = concurrent.futures.ThreadPoolExecutor(1, f"{name}-commit")
        self._readers = Readers(path, name, clock)

    def _open(self, kind: str) -> None:
        """Open the loop's connections on a database that passes its checks."""
        if kind and not os.path.exists(self.path):
            check_meta(EMPTY, kind, self.path)
        self._writer = connect(self.path, waits=0)
        try:
            if kind:
                meta = read_meta(self._writer)
                check_meta(meta, kind, self.path)
                self.uuid = meta.uuid
            self._inline = connect_reader(self.path, waits=0)
        except BaseException:
            self._writer.close()
            raise

    async def write(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a writing unit; durable when it returns."""
        self._refuse_closed()
        if len(self._light) + len(self._heavy) >= MAX_PENDING:
            raise MailError(Kind.UNAVAILABLE, "too many changes are waiting")
        loop = asyncio.get_running_loop()
        unit = _Unit(work, account, args, loop.create_future())
        (self._heavy if _is(work, "heavy") else self._light).append(unit)
        if not self._began:
            self._began = loop.time()
            self._idle.clear()
            loop.call_soon(self._next_batch)
        result: R = await unit.done
        return result

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit on one snapshot."""
        self._refuse_closed()
        if _is(work, "inline"):
            tx = SqliteTx(self._inline, self._clock.now())
            try:
                return snapshot(self._inline, tx, work, account, args)
            except sqlite3.Error as error:
                if code_of(error) not in BUSY:  # else a thread can wait for it
                    raise translate(error, self.name) from error
        return await self._readers.run(work, account, args)

    async def close(self) -> None:
        """Finish what is pending, then close."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()
        await asyncio.to_thread(self._shut)

    def stuck_for(self) -> float:
        """Return for how many seconds the batch under way has been; 0 when idle."""
        if not self._began:
            return 0.0
        return asyncio.get_running_loop().time() - self._began

    def _refuse_closed(self) -> None:
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "shutting down")

    def _shut(self) -> None:
        self._readers.close()
        self._commits.shutdown()
        self._inline.close()
        try:
            self._writer.execute(f"PRAGMA busy_timeout={CLOSE_WAITS}")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            log.warning("checkpoint-failed", database=self.name, error=str(error))
        self._writer.close()
        self._lease.release()

    # --- on the loop ----------------------------------------------------------

    def _next_batch(self) -> None:
        """Start the next batch; light and heavy ones take turns."""
        loop = asyncio.get_running_loop()
        units: list[_Unit] = []
        if not self._light and not self._heavy:
            self._began = 0.0
            self._idle.set()
            return
        self._began = loop.time()
        if self._heavy and (self._heavy_next or not self._light):
            self._heavy_next = False
            rest = self._run_and_commit
            if not _take(self._heavy, units):
                loop.call_soon(self._next_batch)
                return
        else:
            self._heavy_next = True
            rest = self._run_light(units)
        try:
            future = loop.run_in_executor(self._commits, rest, units)
        except RuntimeError as error:  # the interpreter is going down
            self._finish(units, error)
        else:
            future.add_done_callback(lambda done: self._finish(units, done.exception()))

    def _run_light(self, units: list[_Unit]) -> Any:
        """Run waiting light units for at most MAX_HOLD seconds.

        Returns what the writer thread has to do with ``units``.
        """
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:  # locked: the thread can wait for it
            while self._light and len(units) < THREAD_BATCH:
                _take(self._light, units)
            return self._run_and_commit
        tx = SqliteTx(self._writer, self._clock.now())
        until = time.monotonic() + MAX_HOLD
        while self._light:
            if _take(self._light, units) and not self._run(tx, units[-1]):
                break
            if time.monotonic() > until:
                break
        return self._commit

    def _finish(self, units: list[_Unit], fault: BaseException | None) -> None:
        if fault is not None:
            log.error("writer-failed", database=self.name, error=repr(fault))
            self._rollback()  # or no later batch could begin
        for unit in units:
            if not unit.done.done():
                self._tell(unit, fault or unit.error)
        # After those who were just told: what they write next joins this batch.
        asyncio.get_running_loop().call_soon(self._next_batch)

    def _tell(self, unit: _Unit, error: BaseException | None) -> None:
        if error is None:
            unit.done.set_result(unit.result)
        elif isinstance(error, sqlite3.Error):
            failure = translate(error, self.name)
            failure.__cause__ = error
            unit.done.set_exception(failure)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            unit.done.set_exception(error)
        else:  # a future cannot carry it, or it would end the loop
            failure = MailError(Kind.INTERNAL)
            failure.__cause__ = error
            unit.done.set_exception(failure)

    # --- on the loop or in the writer thread, never at once ---------------------

    def _run(self, tx: SqliteTx, unit: _Unit) -> bool:
        """Run one unit in a savepoint; False when the transaction itself is gone."""
        execute = self._writer.execute
        try:
            execute("SAVEPOINT u")
            unit.result = unit.work(tx, unit.account, unit.args)
            execute("RELEASE u")
        except BaseException as error:  # KeyboardInterrupt must not break the batch
            unit.error = error
            return self._undo()
        return True

    def _undo(self) -> bool:
        """Undo what one unit did; False when the whole batch is lost."""
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK TO u")
                self._writer.execute("RELEASE u")
        except sqlite3.Error:
            self._rollback()
        return self._writer.in_transaction

    def _rollback(self) -> None:
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error as error:
            log.exception("rollback-failed", database=self.name, error=str(error))

    # --- in the writer thread ---------------------------------------------------

    def _run_and_commit(self, units: list[_Unit]) -> None:
        """Run and commit units where waiting for a lock hurts nobody."""
        self._writer.execute(f"PRAGMA busy_timeout={WAITS}")
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            tx = SqliteTx(self._writer, self._clock.now())
            for unit in units:
                if not self._run(tx, unit):
                    break
            self._commit(units)
        except sqlite3.Error as error:
            for unit in units:
                unit.error = error
        finally:
            self._writer.execute("PRAGMA busy_timeout=0")

    def _commit(self, units: list[_Unit]) -> None:
        """Commit the batch; if it is lost as a whole, rerun its units alone."""
        started = time.monotonic()
        error = self._try_commit()
        if error is not None:
            LOST.labels(self.name).inc()
            log.warning(
                "batch-lost", database=self.name, units=len(units), error=str(error)
            )
            if len(units) == 1:
                units[0].error = units[0].error or error
            else:
                for unit in units:
                    self._rerun(unit)
        COMMIT_SECONDS.observe(time.monotonic() - started)
        self._labels[0].inc()
        self._labels[1].inc(len(units))

    def _try_commit(self) -> sqlite3.Error | None:
        try:
            if not self._writer.in_transaction:
                return sqlite3.OperationalError("rolled back by SQLite")
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            return error
        return None

    def _rerun(self, unit: _Unit) -> None:
        unit.result = unit.error = None
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            tx = SqliteTx(self._writer, self._clock.now())
            unit.result = unit.work(tx, unit.account, unit.args)
            self._writer.execute("COMMIT")
        except BaseException as error:  # told to the unit's caller
            unit.error = error
            self._rollback()


def _is(work: Any, mark: str) -> bool:
    return getattr(work, mark, False) is True


def _take(waiting: collections.deque[_Unit], units: list[_Unit]) -> bool:
    """Move a unit to the batch; False when its caller no longer wants it."""
    unit = waiting.popleft()
    if unit.done.done():
        return False
    units.append(unit)
    return True
