"""Group commit: concurrent puts share one write and one sync.

While a batch is being synced, the next one collects.  The loop decides what forms
a batch; one dedicated thread writes it, and hands the whole result back with one
call into the loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence

from mailserverd.core.errors import Kind, MailError
from storage.batches import Waiting, answer, first, octets_of
from storage.model import BlobRef
from storage.patience import Patience
from storage.segments import RECORD_HEADER, Payload

Write = Callable[[Sequence[Payload]], list[BlobRef]]

BATCH_OCTETS = 16 << 20
BATCH_RECORDS = 4096


class GroupCommit:
    """Collects payloads on the loop; writes batches in its own thread.

    ``gather`` is the longest time in seconds that a batch waits for expected puts.
    ``write`` runs in the thread, one batch at a time, and raises MailError.
    """

    def __init__(self, write: Write, gather: float) -> None:
        self._write = write
        self._gather = gather
        self._patience = Patience()
        self._expected = 0
        self._waiting: list[Waiting] = []
        self._octets = 0
        self._busy = False
        self._timer: asyncio.Handle | None = None
        self._had = 0  # how many were waiting when the timer was set
        self._idle = asyncio.Event()
        self._idle.set()
        self._jobs: queue.SimpleQueue[list[Waiting] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.batches = 0
        self.puts = 0

    # --- on the loop ---

    async def put(self, payload: Payload) -> BlobRef:
        """Return the payload's ref when it is durable."""
        if self._closed:
            raise MailError(Kind.UNAVAILABLE, "blob store is closed")
        done: asyncio.Future[BlobRef] = asyncio.get_running_loop().create_future()
        self._waiting.append((payload, done))
        self._octets += payload.length + RECORD_HEADER
        self._idle.clear()
        self._consider()
        return await done

    def expect(self, change: int) -> None:
        """Change the number of puts that are about to come."""
        self._expected = max(self._expected + change, 0)
        if self._timer and not self._expected:  # the last one puts in this very step
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_soon(self._start)

    def _consider(self) -> None:
        """Start a batch unless one is running or waiting is better."""
        if self._busy or not self._waiting:
            return
        if self._expected and self._octets < BATCH_OCTETS:
            if self._timer:
                return
            if self._patience.waits():
                self._had = len(self._waiting)
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._gather, self._start)
                return
        self._start()

    def _start(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
            self._patience.learn(len(self._waiting) - self._had)
        batch = self._take()
        self._busy = True
        self._jobs.put(batch)
        if not self._thread:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="blobs", daemon=True)
            self._thread.start()

    def _take(self) -> list[Waiting]:
        """Remove a batch from what waits: not more than the limits, at least one."""
        count = first(self._waiting, BATCH_OCTETS, BATCH_RECORDS)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._octets = octets_of(self._waiting)
        return batch

    def _finish(
        self, batch: list[Waiting], refs: Sequence[BlobRef], error: Exception | None
    ) -> None:
        """Answer a whole batch; start the next."""
        self._busy = False
        self.batches += 1
        self.puts += len(refs)
        answer(batch, refs, error)
        self._consider()
        if not self._busy and not self._waiting:
            self._idle.set()

    async def close(self) -> None:
        """Write what waits, then stop the thread."""
        self._closed = True
        self._expected = 0
        if self._timer:
            self._consider()
        await self._idle.wait()
        if self._thread:
            self._jobs.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None

    # --- in the thread ---

    def _run(self) -> None:
        while (batch := self._jobs.get()) is not None:
            refs: Sequence[BlobRef] = ()
            error: Exception | None = None
            try:
                refs = self._write([payload for payload, _ in batch])
            except Exception as e:  # told to whoever waits
                error = e
            self._loop.call_soon_threadsafe(self._finish, batch, refs, error)
