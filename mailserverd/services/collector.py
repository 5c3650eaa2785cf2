"""Removes bytes that nobody owns, and packs segments that are mostly dead or small.

What makes it safe while mail arrives, in this process and in others:

1. Rows of blobs without an owner are forgotten in the shards' own transactions: from
   then on a message with the same content brings its own record.
2. A segment in which nothing is needed is *retired* in the queue and in every shard:
   from that commit on each of them refuses rows that point into it, however late they
   come (``storage.metadata.retired``).  Whoever is refused puts the message again.
3. Only then, and after a while for those who still read there, all are asked once
   more; what came in just before the fence is seen now, and copied out.  A retired
   segment that nobody needs is needed by nobody ever again: it is removed.
4. Rows are moved one by one, each only from the very place that was copied and never
   into a retired segment: a collector that was stopped half-way and goes on much
   later does no harm, nor do two at once.

A shard or queue that cannot be asked, or accounts on a shard that is not configured,
end the run before anything is removed.  Every step is durable by itself, so a run may
end anywhere; the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter, gauge
from mailserverd.services.usage import CHUNK, LOOK, Pace, Usage, size_of
from storage.compaction import (
    Packer,
    Policy,
    SegmentUse,
    Step,
    going_round,
    judge,
    settled,
)
from storage.metadata import blobs as units
from storage.metadata import collect, retired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mailserverd.core.ports import Clock
    from mailserverd.services.usage import Held
    from storage.api import Database, SegmentStore
    from storage.metadata.queue import MailQueue
    from storage.model import BlobRef
    from storage.report import SegmentInfo

    Progress = Callable[[dict[str, Any]], None]

log = get_logger("collector")
NAME = "collector"
FIRST = 300.0  # seconds after the start
EVERY = 6 * 3600.0  # seconds between runs
RATE = 16 << 20  # octets per second
REMEMBER = 30 * 86_400  # seconds that the fence of a removed segment is kept
NOTE_EVERY = 64  # segments
FREED = counter("blob_octets_freed", "Octets of segments removed by the collector")
COPIED = counter("blob_octets_copied", "Octets of segments written by the collector")
REMOVED = counter("blob_segments_removed", "Segments removed by the collector")
PACKED = counter("blob_segments_packed", "Segments whose needed blobs were copied out")
GARBAGE = gauge("blob_garbage_octets", "Octets of settled segments that nobody needs")


@dataclasses.dataclass(slots=True)
class Collected:
    """What a run did, or with ``dry_run`` what one would do."""

    expired_uploads: int = 0
    forgotten: int = 0  # blobs without an owner
    examined: int = 0  # segments
    rewritten: int = 0  # segments: sparse ones, and small ones that were merged
    copied: int = 0  # octets
    retired: int = 0  # segments, to be removed after a while
    removed: int = 0  # segments
    freed: int = 0  # octets
    pending: int = 0  # octets of what is to be removed after a while
    garbage: int = 0  # octets of all that nobody needs and that is left


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How a run goes about it: ``rate`` in octets per second, 0 for any."""

    policy: Policy = dataclasses.field(default_factory=Policy)
    rate: int = RATE
    dry_run: bool = False


@dataclasses.dataclass(slots=True)
class _Round:
    """One pass over all segments."""

    plan: Plan
    pace: Pace
    done: Collected
    infos: dict[int, SegmentInfo]
    since: dict[int, int]  # when those that every database refuses were retired
    packer: Packer
    small: Packer  # of what is merged if enough of it is found
    newest: int
    held: dict[int, Held] = dataclasses.field(default_factory=dict)  # of both packers
    garbage: dict[int, int] = dataclasses.field(default_factory=dict)
    again: list[int] = dataclasses.field(default_factory=list)  # just retired
    fresh: set[int] = dataclasses.field(default_factory=set)  # retired in this round


def _silent(_: dict[str, Any]) -> None:
    """Say nothing."""


class Collector:
    """One run at a time; see the module for why it is safe.

    ``missing`` returns how many accounts live on shards that are not among these.
    """

    def __init__(
        self,
        shards: Sequence[Database],
        queue: MailQueue,
        blobs: SegmentStore,
        clock: Clock,
        plan: Plan | None = None,
        *,
        missing: Callable[[], int] = int,
    ) -> None:
        self._shards = tuple(shards)
        self._databases = (queue.database, *self._shards)
        self._queue = queue
        self._blobs = blobs
        self._usage = Usage(shards, queue, blobs)
        self._clock = clock
        self._plan = plan or Plan()
        self._missing = missing
        self._running = asyncio.Lock()
        self._stuck: set[int] = set()  # segments of which damage stays behind

    async def watch(self) -> None:
        """Run every ``EVERY`` seconds until cancelled."""
        await asyncio.sleep(FIRST)
        while True:
            try:
                await self.run()
            except MailError as error:
                log.warning("collection-failed", error=str(error))
            await asyncio.sleep(EVERY)

    async def run(
        self, plan: Plan | None = None, progress: Progress = _silent
    ) -> Collected:
        """Expire, forget, pack and remove; a store that is down raises its error.

        ``progress`` is called after each segment.  UNAVAILABLE while another run is
        under way.
        """
        plan = plan or self._plan
        if strangers := self._missing():
            raise MailError(
                Kind.UNAVAILABLE,
                f"{strangers} accounts live on shards that are not configured: "
                "nothing is collected",
            )
        if plan.dry_run:
            return await self._go(plan, progress)
        if self._running.locked():
            raise MailError(Kind.UNAVAILABLE, "a collection is under way already")
        async with self._running:
            done = await self._go(plan, progress)
        GARBAGE.set(done.garbage)
        log.info("blobs-collected", **dataclasses.asdict(done))
        return done

    async def _go(self, plan: Plan, progress: Progress) -> Collected:
        done, pace = Collected(), Pace(plan.rate, self._clock)
        for shard in self._shards:
            if plan.dry_run:
                done.expired_uploads += await shard.read(
                    collect.overdue_uploads, 0, None
                )
            else:
                done.expired_uploads += await _expire(shard)
            done.forgotten += await self._forget(shard, pace, dry_run=plan.dry_run)
        await self._round(plan, pace, done, progress)
        return done

    async def _forget(self, shard: Database, pace: Pace, *, dry_run: bool) -> int:
        total, after = 0, b""
        while True:
            after, free = await shard.read(collect.unowned, 0, (after, CHUNK))
            if not after:
                return total
            if free and not dry_run:
                free = await shard.write(units.forget_blobs, 0, free)
            total += len(free)
            await pace.spend(LOOK * CHUNK)

    # --- all segments, one after the other ---

    async def _round(
        self, plan: Plan, pace: Pace, done: Collected, progress: Progress
    ) -> None:
        infos = {info.segment: info for info in await self._blobs.segments()}
        work = _Round(
            plan,
            pace,
            done,
            infos,
            await self._fences(infos),
            Packer(plan.policy),
            Packer(plan.policy),
            newest=max(infos, default=0),
        )
        last = start = 0 if plan.dry_run else await self._position()
        for count, number in enumerate(going_round(infos, start), 1):
            packed = await self._segment(work, number)
            done.examined += 1
            progress({"segment": count, "of": len(infos), **_brief(done)})
            # Small ones that wait hold nothing up: the next run finds them, too.
            idle = work.packer.empty
            if packed or (count % NOTE_EVERY == 0 and idle):
                await self._note(plan, number if idle else last)
            if idle or packed:
                last = number
        await self._pack(work, work.packer.take())
        await self._merge(work, work.small.take())
        if not plan.dry_run:
            await self._look_again(work)
        done.garbage = sum(work.garbage.values())
        await self._forget_fences(plan, infos)
        await self._note(plan, 0)

    async def _look_again(self, work: _Round) -> None:
        """Look once more at what was just retired: a row may have come in before the
        fence, and an acceptance may wait for its bytes to be where rows can point."""
        again, work.again = work.again, []
        work.since = await self._fences(again)
        for number in again:
            await self._segment(work, number)
        await self._pack(work, work.packer.take())

    async def _segment(self, work: _Round, number: int) -> bool:
        """Do the next step for one segment; True when others were packed."""
        info, policy = work.infos[number], work.plan.policy
        use = self._use(work, info)
        if not settled(use, policy):
            return False
        held = await self._usage.look(info, work.pace, foresee=work.plan.dry_run)
        use = dataclasses.replace(use, live=held.live, lost=held.lost)
        work.garbage[number] = info.octets - held.live
        match judge(use, policy):
            case Step.REWRITE:
                group = work.packer.add(use, len(held.needed))
                await self._pack(work, group)
                work.held[number] = held
                return bool(group)
            case Step.MERGE if number not in self._stuck:
                group = work.small.add(use, len(held.needed))
                await self._merge(work, group)
                work.held[number] = held
            case Step.RETIRE:
                await self._retire(work, (number,))
            case Step.REMOVE:
                await self._remove(work, info)
            case _:
                pass
        return False

    def _use(self, work: _Round, info: SegmentInfo) -> SegmentUse:
        now, since = self._clock.now(), work.since.get(info.segment)
        # The newest one stays: its number must not be used again.
        sealed = info.sealed and info.segment != work.newest
        waited = None if since is None else max(now - since, 0.0)
        quiet = now - info.modified
        return SegmentUse(info.segment, sealed, info.octets, 0, quiet, waited)

    async def _merge(self, work: _Round, group: Sequence[int]) -> None:
        """Have one segment take the place of small ones, if these are enough: else
        the same octets would be copied in every run."""
        if len(group) >= work.plan.policy.few:
            await self._pack(work, group)
        else:
            for number in group:
                del work.held[number]

    async def _pack(self, work: _Round, group: Sequence[int]) -> None:
        """Copy what is needed of a group, move the rows, retire the old segments."""
        held = {number: work.held.pop(number) for number in group}
        refs = [ref for one in held.values() for ref in one.needed]
        moves = {ref: ref for ref in refs}
        if refs and not work.plan.dry_run:
            moves = await self._blobs.rewrite(refs, work.plan.rate)
            await self._move(tuple(moves.items()))
            COPIED.inc(size_of(moves.values()))
        work.done.copied += size_of(moves.values())
        empty = [n for n, one in held.items() if _moved(one, moves)]
        self._stuck.update(held.keys() - empty)
        work.done.rewritten += len(empty)
        PACKED.inc(0 if work.plan.dry_run else len(empty))
        for number in empty:
            work.garbage[number] = work.infos[number].octets
        await self._retire(work, empty)
        await work.pace.spend(size_of(moves.values()))

    async def _move(self, pairs: Sequence[tuple[BlobRef, BlobRef]]) -> None:
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            for shard in self._shards:
                await shard.write(units.move_blobs, 0, chunk)
            await self._queue.move_blobs(chunk)

    async def _remove(self, work: _Round, info: SegmentInfo) -> None:
        if not work.plan.dry_run:
            await self._blobs.remove_segment(info.segment)
            REMOVED.inc()
            FREED.inc(info.octets)
        if info.segment in work.fresh:  # it did not have to wait
            work.done.retired -= 1
            work.done.pending -= info.octets
        work.done.removed += 1
        work.done.freed += info.octets
        work.garbage.pop(info.segment, None)
        await work.pace.spend(LOOK)

    # --- what the databases know ---

    async def _retire(self, work: _Round, segments: Sequence[int]) -> None:
        """Let every database refuse rows that point into these segments."""
        if segments and not work.plan.dry_run:
            for database in self._databases:
                await database.write(retired.retire, 0, tuple(segments))
        work.done.retired += len(segments)
        work.done.pending += sum(work.infos[n].octets for n in segments)
        work.again += segments
        work.fresh.update(segments)

    async def _fences(self, segments: Iterable[int]) -> dict[int, int]:
        """Return since when segments are refused by every database."""
        numbers, found = tuple(segments), {}
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            known = [
                await database.read(retired.retired_since, 0, chunk)
                for database in self._databases
            ]
            for number in chunk:
                times = [one[number] for one in known if number in one]
                if len(times) == len(known):
                    found[number] = max(times)
        return found

    async def _forget_fences(self, plan: Plan, infos: dict[int, SegmentInfo]) -> None:
        """Drop the fences of segments that were removed long ago."""
        if plan.dry_run:
            return
        before = int(self._clock.now()) - REMEMBER
        for database in self._databases:
            after = 0
            while page := await database.read(retired.list_retired, 0, (after, CHUNK)):
                after = page[-1]
                gone = tuple(number for number in page if number not in infos)
                if gone:
                    await database.write(retired.forget_retired, 0, (gone, before))

    async def _position(self) -> int:
        return await self._queue.database.read(retired.position, 0, NAME)

    async def _note(self, plan: Plan, number: int) -> None:
        if not plan.dry_run:
            args = (NAME, number)
            await self._queue.database.write(retired.set_position, 0, args)


async def _expire(shard: Database) -> int:
    total = 0
    while done := await shard.write(units.expire_uploads, 0, CHUNK):
        total += done
    return total


def _moved(held: Held, moves: Iterable[BlobRef]) -> bool:
    """Return whether nothing of a segment stays behind, for its damage."""
    return not held.lost and all(ref in moves for ref in held.needed)


def _brief(done: Collected) -> dict[str, int]:
    return {"rewritten": done.rewritten, "removed": done.removed, "freed": done.freed}
