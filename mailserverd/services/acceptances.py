"""Acceptances: their commit, applying them to targets now, catching up the rest.

A target that fails, or takes its time, holds up neither who sent the message nor the
other targets: it gets its part later.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import gauge
from mailserverd.services.facts import read_facts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mailserverd.core.ports import Clock, Offload
    from mailserverd.services.deliver import Deliver
    from storage.api import BlobStore
    from storage.metadata.queue import MailQueue
    from storage.queue import Acceptance, PendingPart

R = TypeVar("R")
SETTLE = 0.5  # seconds in which applied parts are collected into one write
PATIENCE = 1.0  # seconds that a message waits for its targets once it is accepted
AGAIN = 5.0  # seconds between tries while a target is down
LATER = 60.0  # seconds between tries of parts that cannot be applied as they are
LOOK = 15.0  # seconds between looks for what other processes left
PAGE = 100
TRIES = 3  # failures in a row after which a target is left alone for a while
AT_ONCE, OCTETS_AT_ONCE = 16, 4 << 20  # of parts applied to a target side by side
TARGET_DOWN = frozenset({Kind.UNAVAILABLE, Kind.STORAGE_FULL})
FIRST = (0, b"")  # the place before all parts
log = get_logger("deliver")
DOWN = gauge("targets_down", "Targets that parts of messages wait for")


class Acceptances:
    """Bookkeeping of messages with several targets.

    ``deferred`` is set when a part is left to ``run``.  Parts younger than ``grace``
    seconds may still be applied by another process, and are left to it.
    """

    def __init__(
        self,
        queue: MailQueue,
        blobs: BlobStore,
        clock: Clock,
        offload: Offload,
        *,
        grace: int = 0,
    ) -> None:
        self.queue = queue
        self._blobs = blobs
        self._clock = clock
        self._offload = offload
        self._grace = grace
        self._applied: dict[bytes, list[str]] = {}
        self._settling: asyncio.Task[None] | None = None
        self.deferred = asyncio.Event()
        self._in_flight: set[bytes] = set()
        self._applying: set[asyncio.Task[None]] = set()
        self._down: dict[str, float] = {}  # since when, or tried again
        self._resume: dict[str, tuple[int, bytes]] = {}
        self._not_before: dict[str, float] = {}

    # --- at delivery ------------------------------------------------------------

    async def accept(
        self, new: Acceptance, apply: Callable[[str], Awaitable[R]]
    ) -> tuple[str, list[R]]:
        """Commit an acceptance, then give its targets their parts.

        Returns the queue id of its queued part ("" without one), and what ``apply``
        returned for those targets that had their part within ``PATIENCE``.
        """
        key = new.acceptance_id
        self._in_flight.add(key)
        done: list[R] = []
        try:
            queue_id = await self.queue.accept(new)
        except BaseException:
            self._in_flight.discard(key)
            raise
        task = asyncio.create_task(self._apply_all(new, apply, done))
        self._applying.add(task)
        task.add_done_callback(self._applying.discard)
        await asyncio.wait((task,), timeout=PATIENCE)
        return queue_id, list(done)

    async def _apply_all(
        self, new: Acceptance, apply: Callable[[str], Awaitable[R]], done: list[R]
    ) -> None:
        async def one(target: str) -> None:
            late = loop.call_later(PATIENCE, self._is_down, target, "no answer in time")
            try:
                done.append(await apply(target))
            except MailError as error:
                self._failed(target, error)
            else:
                self.part_applied(new.acceptance_id, target)
                self._is_up(target)
            finally:
                late.cancel()

        loop = asyncio.get_running_loop()
        targets = [part.target for part in new.parts]
        before = self._clock.monotonic() - AGAIN
        now = [one for one in targets if self._down.get(one, before) <= before]
        if len(now) < len(targets):
            self.deferred.set()
        try:
            await asyncio.gather(*map(one, now))
        except Exception:
            log.exception("part-failed", acceptance=new.acceptance_id.hex())
            self.deferred.set()
        finally:
            self._in_flight.discard(new.acceptance_id)

    def _failed(self, target: str, error: MailError) -> None:
        """Note that a part is still to be applied, and if its target is to blame."""
        self.deferred.set()
        if error.kind in TARGET_DOWN:
            self._is_down(target, str(error))
        else:
            log.warning("part-refused", target=target, error=str(error))

    def _is_down(self, target: str, why: str) -> None:
        self.deferred.set()
        if target not in self._down:
            log.warning("target-down", target=target, error=why)
        self._down[target] = self._clock.monotonic()
        DOWN.set(len(self._down))

    def _is_up(self, target: str) -> None:
        if self._down.pop(target, None) is not None:
            DOWN.set(len(self._down))
            log.info("target-up", target=target)

    def part_applied(self, acceptance: bytes, target: str) -> None:
        """Note, a moment later, that a target has its part.

        Were the note lost, the part would be applied once more: to no effect.
        """
        self._applied.setdefault(acceptance, []).append(target)
        if self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._settle())

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
        """Write down what was applied, at the end; what is late stays for later."""
        if self._applying:
            await asyncio.wait(self._applying, timeout=PATIENCE)
        for task in self._applying:
            task.cancel()
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        await self.settle()

    # --- catching up ------------------------------------------------------------

    async def run(self, deliver: Deliver) -> None:
        """Apply what is left behind, each target at its own pace; until cancelled."""
        working: dict[str, asyncio.Task[int]] = {}
        try:
            while True:
                self.deferred.clear()
                targets = await self._waiting()
                for target in targets:
                    if target not in working or working[target].done():
                        work = self._catch_up(deliver, target)
                        working[target] = asyncio.create_task(work)
                if targets:
                    await asyncio.sleep(AGAIN)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0 if targets else LOOK):
                        await self.deferred.wait()
        finally:
            for task in working.values():
                task.cancel()

    async def _waiting(self) -> list[str]:
        """Return the targets that are to be tried now."""
        try:
            waiting = await self.queue.waiting_targets()
        except MailError as error:
            log.warning("catch-up-failed", error=str(error))
            return []
        now = self._clock.monotonic()
        return [one for one in waiting if self._not_before.get(one, 0.0) <= now]

    async def catch_up(self, deliver: Deliver) -> int:
        """Try every target that parts wait for; return how many parts failed."""
        targets = await self.queue.waiting_targets()
        return sum(
            await asyncio.gather(*(self._catch_up(deliver, one) for one in targets))
        )

    async def _catch_up(self, deliver: Deliver, target: str) -> int:
        """Apply a target's parts, the oldest first; return how many failed.

        After ``TRIES`` failures in a row it is left alone, and the next time begins
        behind them: parts that cannot be applied do not hold up the others for ever.
        """
        start = self._resume.pop(target, FIRST)
        failed = await self._catch_up_from(deliver, target, start)
        if start != FIRST and target not in self._resume:
            failed += await self._catch_up_from(deliver, target, FIRST)
        later = LATER if failed and target not in self._down else 0.0
        self._not_before[target] = self._clock.monotonic() + later
        return failed

    async def _catch_up_from(
        self, deliver: Deliver, target: str, after: tuple[int, bytes]
    ) -> int:
        before = int(self._clock.now()) - self._grace
        failed = in_a_row = 0
        width = 1
        try:
            while page := await self.queue.pending(
                before, PAGE, target=target, after=after
            ):
                for group in _groups(page, width):
                    results = await asyncio.gather(
                        *(self._apply(deliver, part) for part in group)
                    )
                    failed += len(results) - results.count(True)
                    if False in results and True not in results:
                        in_a_row += 1
                    elif True in results:
                        in_a_row = 0
                    width = 1 if False in results else min(width * 2, AT_ONCE)
                    after = group[-1].created, group[-1].acceptance_id
                    if in_a_row == TRIES and target in self._down:
                        self._resume[target] = after
                        return failed
        except MailError as error:  # the queue's
            log.warning("catch-up-failed", target=target, error=str(error))
        return failed

    async def _apply(self, deliver: Deliver, pending: PendingPart) -> bool | None:
        """Apply a part; False when its target failed, None when it cannot be read."""
        key, target = pending.acceptance_id, pending.part.target
        if key in self._in_flight:
            return True
        try:
            raw = await self._blobs.read(pending.blob)
            facts = await read_facts(raw, self._offload)
        except MailError as error:
            log.warning("part-unreadable", acceptance=key.hex(), error=str(error))
            return None
        try:
            await deliver.apply_pending(pending, facts.email(pending.blob))
            await self.queue.applied(key, (target,))
        except MailError as error:
            self._failed(target, error)
            return False
        self._is_up(target)
        log.info("target-caught-up", target=target, acceptance=key.hex())
        return True


def _groups(page: Sequence[PendingPart], width: int) -> list[list[PendingPart]]:
    """Split parts into groups that are applied at once: few, and few octets."""
    groups: list[list[PendingPart]] = []
    octets = 0
    for part in page:
        octets += part.blob.size
        if not groups or len(groups[-1]) >= width or octets > OCTETS_AT_ONCE:
            groups.append([])
            octets = part.blob.size
        groups[-1].append(part)
    return groups
