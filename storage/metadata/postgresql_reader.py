"""Reading units on PostgreSQL, each on one snapshot.

A unit of a single statement costs one round trip, as a statement is a snapshot in
itself.  A unit that asks a second one is begun anew in a transaction, and the next time
its function is begun there at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core.errors import Kind, MailError
from storage.metadata.postgresql_errors import (
    DRIVER,
    is_conflict,
    is_lost,
    translate,
)
from storage.metadata.postgresql_link import PATIENCE, Link, Target
from storage.metadata.postgresql_tx import Running
from storage.metadata.postgresql_units import drive

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock
    from storage.api import Work

A = TypeVar("A")
R = TypeVar("R")

LINKS = 3  # for units on the loop
THREADS = 2  # for the others
LIMIT = 30.0  # seconds of one unit
BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
ATTEMPTS = 3


class PostgresqlReader:
    """``storage.api.Reader`` of a database whose ``uuid`` was looked up before.

    Units marked ``inline`` run on the loop, where many wait at once; the others,
    which may read thousands of rows, in threads with loops of their own.
    """

    def __init__(self, target: Target, uuid: bytes, clock: Clock, *, name: str) -> None:
        self.name = name
        self.uuid = uuid
        self._target = target
        self._clock = clock
        self._several: set[Work[Any, Any]] = set()
        self._closed = False
        self._idle: list[Link] = []
        self._places = asyncio.Semaphore(LINKS)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._own = threading.local()
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, f"{name}-read")
        self._loops: list[tuple[asyncio.AbstractEventLoop, Link]] = []

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit on one snapshot.  UNAVAILABLE."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "shutting down")
        if getattr(work, "inline", False) is True:
            task = asyncio.ensure_future(self._on_loop(work, account, args))
            self._under_way.add(task)
            task.add_done_callback(self._done)
            # The driver would open a connection to cancel what a caller leaves.
            result: R = await asyncio.shield(task)
            return result
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self._in_thread, work, account, args
        )

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when the caller has left

    async def close(self) -> None:
        """Finish what runs, then close all connections."""
        if self._closed:
            return
        self._closed = True
        if self._under_way:
            await asyncio.wait(self._under_way)
        for link in self._idle:
            await link.close()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._threads.shutdown()
        for loop, link in self._loops:
            loop.run_until_complete(link.close())
            loop.close()

    async def _on_loop(self, work: Work[A, R], account: int, args: A) -> R:
        async with self._places:
            link = self._idle.pop() if self._idle else Link(self._target, self.name)
            try:
                return await self._run(link, work, account, args)
            finally:
                self._idle.append(link)

    def _in_thread(self, work: Work[A, R], account: int, args: A) -> R:
        if not hasattr(self._own, "link"):
            try:
                self._own.loop = asyncio.new_event_loop()
            except OSError as error:  # no file is left to open
                raise translate(error, self.name) from error
            self._own.link = Link(self._target, self.name)
            self._loops.append((self._own.loop, self._own.link))
        loop: asyncio.AbstractEventLoop = self._own.loop
        return loop.run_until_complete(self._run(self._own.link, work, account, args))

    async def _run(self, link: Link, work: Work[A, R], account: int, args: A) -> R:
        """Run a unit, again after a lost connection."""
        began, attempts = time.monotonic(), 0
        while True:
            attempts += 1
            try:
                with link.limited(LIMIT):
                    await link.open()
                    running = await self._snapshot(link, work, account, args)
                if isinstance(running.error, DRIVER):
                    raise running.error
            except DRIVER as error:
                if is_lost(error):
                    link.abort()
                late = time.monotonic() - began > PATIENCE or attempts > ATTEMPTS
                if (
                    late
                    or link.target.away
                    or not (is_lost(error) or is_conflict(error))
                ):
                    told = link.target.is_told(error)
                    raise translate(error, self.name, told=told) from error
                continue
            if running.error is not None:
                raise running.error
            result: R = running.result
            return result

    async def _snapshot(
        self, link: Link, work: Work[Any, Any], account: int, args: Any
    ) -> Running:
        now = self._clock.now()
        running = Running(work, account, args, now)
        if link.target.prepared and work not in self._several:
            if await _single(link, running):
                return running
            self._several.add(work)
            running = Running(work, account, args, now)
        await link.script(BEGIN)
        await drive(link, running)
        if running.error is None or not is_lost(running.error):
            await link.script("ROLLBACK")
        return running


async def _single(link: Link, running: Running) -> bool:
    """Run a unit of one statement; False, and nothing is done, when it has more."""
    running.start()
    if running.ask is None:
        return True
    try:
        answer = await link.send(running.ask)
    except DRIVER as error:
        running.fail(error)
        running.error = error
        return True
    running.resume(answer)
    if not running.ended:
        running.drop()
    return running.ended
