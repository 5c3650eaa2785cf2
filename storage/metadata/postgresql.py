"""A PostgreSQL database with one batching writer (DESIGN decision 8).

Units that arrive while a batch is under way form the next one.  Units marked ``heavy``
run one by one in a thread with a connection of its own, taking turns with batches of
light ones.  Several processes may have the same database open: their batches follow
one another (``postgresql_writer``).
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from storage.metadata.postgresql_link import Link, Target
from storage.metadata.postgresql_reader import PostgresqlReader
from storage.metadata.postgresql_units import Unit
from storage.metadata.postgresql_writer import Writer

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock
    from storage.api import Work

A = TypeVar("A")
R = TypeVar("R")
log = get_logger("storage")

MAX_PENDING = 20_000  # units that may wait
MAX_BATCH = 200  # units of one transaction
LIGHT_LIMIT = 15.0  # seconds of one batch
HEAVY_LIMIT = 120.0  # seconds of one heavy unit


class PostgresqlDatabase:
    """``storage.api.Database``; made by ``postgresql_url.open_database``.

    A caller that is cancelled before its unit ran withdraws it; one that is
    cancelled later does not know whether it was committed.
    """

    def __init__(
        self, target: Target, uuid: bytes, clock: Clock, *, name: str, serial: bool
    ) -> None:
        self.name = name
        self.uuid = uuid
        self._reader = PostgresqlReader(target, uuid, clock, name=name)
        self._link = Link(target, name)
        self._writer = Writer(self._link, name, clock, LIGHT_LIMIT, serial=serial)
        self._heavy_link = Link(target, name)
        self._heavy_writer = Writer(
            self._heavy_link, name, clock, HEAVY_LIMIT, serial=serial
        )
        self._thread = concurrent.futures.ThreadPoolExecutor(1, f"{name}-heavy")
        self._heavy_loop: asyncio.AbstractEventLoop | None = None
        self._light: collections.deque[Unit] = collections.deque()
        self._heavy: collections.deque[Unit] = collections.deque()
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0  # when the batch under way began; 0 while idle
        self._closed = False

    async def write(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a writing unit; durable when it returns."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "shutting down")
        if len(self._light) + len(self._heavy) >= MAX_PENDING:
            raise MailError(Kind.UNAVAILABLE, "too many changes are waiting")
        loop = asyncio.get_running_loop()
        unit = Unit(work, account, args, loop.create_future())
        heavy = getattr(work, "heavy", False) is True
        (self._heavy if heavy else self._light).append(unit)
        if self._task is None:
            self._began = loop.time()
            self._task = loop.create_task(self._batches())
        result: R = await unit.done
        return result

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit on one snapshot."""
        return await self._reader.read(work, account, args)

    def stuck_for(self) -> float:
        """Return for how many seconds the batch under way has been; 0 when idle."""
        if not self._began:
            return 0.0
        return asyncio.get_running_loop().time() - self._began

    async def close(self) -> None:
        """Finish what is pending, then close."""
        if self._closed:
            return
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task])
        await self._reader.close()
        await self._link.close()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._thread.shutdown()
        if self._heavy_loop is not None:
            self._heavy_loop.run_until_complete(self._heavy_link.close())
            self._heavy_loop.close()

    # --- batches ----------------------------------------------------------------

    async def _batches(self) -> None:
        """Run batches until nothing waits; light and heavy ones take turns."""
        loop = asyncio.get_running_loop()
        heavy_next = False
        while self._light or self._heavy:
            self._began = loop.time()
            heavy = bool(self._heavy) and (heavy_next or not self._light)
            heavy_next = not heavy
            units = _take(self._heavy, 1) if heavy else _take(self._light, MAX_BATCH)
            if units:
                await self._run(units, heavy=heavy)
            # After those who were just told: what they write next joins this batch.
            await asyncio.sleep(0)
        self._began = 0.0
        self._task = None

    async def _run(self, units: list[Unit], *, heavy: bool) -> None:
        try:
            if heavy:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self._run_heavy, units)
            else:
                await self._writer.run(units)
        except BaseException as error:
            log.exception("writer-failed", database=self.name)
            for unit in units:
                unit.error = unit.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for unit in units:
                if not unit.done.done():
                    _tell(unit)

    def _run_heavy(self, units: list[Unit]) -> None:
        if self._heavy_loop is None:
            self._heavy_loop = asyncio.new_event_loop()
        self._heavy_loop.run_until_complete(self._heavy_writer.run(units))


def _take(waiting: collections.deque[Unit], most: int) -> list[Unit]:
    """Take units, but for those whose caller no longer wants them."""
    units: list[Unit] = []
    while waiting and len(units) < most:
        unit = waiting.popleft()
        if not unit.done.done():
            units.append(unit)
    return units


def _tell(unit: Unit) -> None:
    error: Any = unit.error
    if error is None:
        unit.done.set_result(unit.result)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        unit.done.set_exception(error)
    else:  # a future cannot carry it, or it would end the loop
        failure = MailError(Kind.INTERNAL)
        failure.__cause__ = error
        unit.done.set_exception(failure)
