"""Acceptances after their commit: noting what was applied, catching up the rest."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from mailserverd.services.facts import read_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailserverd.core.ports import Clock, Offload
    from mailserverd.services.deliver import Deliver
    from storage.api import BlobStore
    from storage.metadata.queue import MailQueue
    from storage.queue import PendingPart

SETTLE = 0.5  # seconds in which applied parts are collected into one write
AGAIN = 15.0  # seconds between tries while a target is down
PAGE = 100
log = get_logger("deliver")


class Acceptances:
    """Bookkeeping of messages with several targets."""

    def __init__(
        self, queue: MailQueue, blobs: BlobStore, clock: Clock, offload: Offload
    ) -> None:
        self.queue = queue
        self._blobs = blobs
        self._clock = clock
        self._offload = offload
        self._applied: dict[bytes, list[str]] = {}
        self._settling: asyncio.Task[None] | None = None
        self._deferred = asyncio.Event()
        self._in_flight: set[bytes] = set()

    @contextlib.contextmanager
    def applying(self, acceptance: bytes) -> Iterator[None]:
        """Mark an acceptance as being applied by the delivery itself."""
        self._in_flight.add(acceptance)
        try:
            yield
        finally:
            self._in_flight.discard(acceptance)

    def part_applied(self, acceptance: bytes, target: str) -> None:
        """Note, a moment later, that a target has its part.

        Were the note lost, the part would be applied once more: to no effect.
        """
        self._applied.setdefault(acceptance, []).append(target)
        if self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._settle())

    def part_deferred(self) -> None:
        """Say that a part waits for its target."""
        self._deferred.set()

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLE)
        self._settling = None
        await self.settle()

    async def settle(self) -> None:
        """Write down now what was applied."""
        applied, self._applied = self._applied, {}
        results = await asyncio.gather(
            *(self.queue.applied(key, names) for key, names in applied.items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                log.warning("applied-not-noted", error=str(result))

    async def close(self) -> None:
        """Write down what was applied, at the end."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        await self.settle()

    # --- catching up ----------------------------------------------------------

    async def run(self, deliver: Deliver) -> None:
        """Apply what a crash left behind, then what is deferred; until cancelled."""
        while True:
            self._deferred.clear()
            if await self._attempt(deliver):
                await asyncio.sleep(AGAIN)
            else:
                await self._deferred.wait()

    async def _attempt(self, deliver: Deliver) -> int:
        try:
            return await self.catch_up(deliver)
        except MailError as error:
            log.warning("catch-up-failed", error=str(error))
            return 1

    async def catch_up(self, deliver: Deliver) -> int:
        """Apply pending parts, each once; return how many are still left.

        A target that fails is not asked again for the others.
        """
        before = int(self._clock.now())
        seen: set[tuple[bytes, str]] = set()
        down: set[str] = set()
        left = 0
        while True:
            parts = await self.queue.pending(before, len(seen) + PAGE)
            fresh = [p for p in parts if (p.acceptance_id, p.part.target) not in seen]
            if not fresh:
                return left
            for part in fresh:
                target = part.part.target
                seen.add((part.acceptance_id, target))
                if part.acceptance_id in self._in_flight:
                    continue
                if target in down or not await self._apply(deliver, part):
                    down.add(target)
                    left += 1

    async def _apply(self, deliver: Deliver, pending: PendingPart) -> bool:
        target = pending.part.target
        try:
            raw = await self._blobs.read(pending.blob)
            facts = await read_facts(raw, self._offload)
            await deliver.apply_pending(pending, facts.email(pending.blob))
            await self.queue.applied(pending.acceptance_id, (target,))
        except MailError as error:
            log.warning("target-still-down", target=target, error=str(error))
            return False
        log.info("target-caught-up", target=target)
        return True
