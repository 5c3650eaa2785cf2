"""Which puts go into one object.

A put that is alone is written at once.  It waits, not longer than the window, while
an object is being written (whose answer frees it) or while others are said to be
coming and do come: once nobody has joined for a tenth of the window, it goes.
Everything here runs on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mailserverd.core.errors import Kind, MailError
from storage.batches import Waiting, answer, first, octets_of
from storage.model import BlobRef
from storage.patience import Patience
from storage.segments import RECORD_HEADER, Payload

Write = Callable[[Sequence[Payload]], Awaitable[list[BlobRef]]]
RECORDS = 8192  # of one object


class Packer:
    """Collects payloads into batches and has each written as one object.

    ``window`` in seconds; a batch of ``octets`` does not wait.  At most ``parallel``
    batches are being written at once.  ``write`` raises MailError.
    """

    def __init__(
        self, write: Write, *, window: float, octets: int, parallel: int
    ) -> None:
        self._write = write
        self._window = window
        self._gap = window / 10
        self._limit = octets
        self._parallel = parallel
        self._patience = Patience()
        self._expected = 0
        self._waiting: list[Waiting] = []
        self._octets = 0
        self._first = self._last = 0.0  # when the oldest and newest came
        self._patient = True  # whether what waits now waits for promised puts
        self._had = 0  # how many waited when that began
        self._timer: asyncio.Handle | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._closed = False
        self.batches = 0
        self.puts = 0

    async def put(self, payload: Payload) -> BlobRef:
        """Return the payload's ref when it is durable."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "blob store is closed")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[BlobRef] = loop.create_future()
        self._last = loop.time()
        if not self._waiting:
            self._first = self._last
            self._patient = self._patience.waits() if self._expected else True
            self._had = 1
        self._waiting.append((payload, done))
        self._octets += payload.length + RECORD_HEADER
        self._arm()
        return await done

    def expect(self, change: int) -> None:
        """Change the number of puts that are about to come."""
        self._expected = max(self._expected + change, 0)
        if self._waiting and not self._expected:
            self._arm()  # the last one puts in this very step

    def _due(self) -> float:
        """Return the loop's time at which what waits is to be written."""
        if self._octets >= self._limit or len(self._waiting) >= RECORDS or self._closed:
            return 0.0
        if self._writing:
            return self._first + self._window
        if self._expected and self._patient:
            return min(self._first + self._window, self._last + self._gap)
        return 0.0

    def _arm(self) -> None:
        """Look again when what waits is due: after this step at the earliest, so
        that puts of the same step go together."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if not self._waiting or len(self._writing) >= self._parallel:
            return
        loop, due = asyncio.get_running_loop(), self._due()
        self._timer = (
            loop.call_at(due, self._start)
            if due > loop.time()
            else loop.call_soon(self._start)
        )

    def _start(self) -> None:
        self._timer = None
        if self._expected and self._patient and not self._writing:
            self._patience.learn(len(self._waiting) - self._had)
        batch = self._take()
        task = asyncio.ensure_future(self._run(batch))
        self._writing.add(task)
        task.add_done_callback(self._written)
        self._arm()

    def _take(self) -> list[Waiting]:
        """Remove a batch from what waits: not more than the limits, at least one."""
        count = first(self._waiting, self._limit, RECORDS)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._octets = octets_of(self._waiting)
        return batch

    async def _run(self, batch: list[Waiting]) -> None:
        """Write a batch; answer all of it."""
        refs: Sequence[BlobRef] = ()
        error: Exception | None = None
        try:
            refs = await self._write([payload for payload, _ in batch])
        except Exception as e:  # told to whoever waits
            error = e
        self.batches += 1
        self.puts += len(refs)
        answer(batch, refs, error)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        self._arm()

    async def close(self) -> None:
        """Write what waits; then take no more."""
        self._closed = True
        self._arm()
        while self._writing or self._waiting:
            if self._writing:
                await asyncio.wait(self._writing)
            await asyncio.sleep(0)  # lets the next batch start
