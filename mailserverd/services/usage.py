"""How much of each segment is needed, asked without hurrying."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core.errors import MailError
from storage.metadata import blobs as units
from storage.metadata import collect
from storage.segments import FOOTER_ENTRY, OVERHEAD, RECORD_HEADER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Iterable, Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Database, SegmentStore
    from storage.metadata.queue import MailQueue
    from storage.model import BlobRef
    from storage.report import SegmentInfo

R = TypeVar("R")
CHUNK = 500  # rows of one unit of work
LOOK = 1024  # octets that asking for one record counts as
LEAST = 0.02  # seconds: shorter pauses are saved up


class Pace:
    """Keeps work at ``rate`` octets per second on average; 0: as fast as it goes."""

    def __init__(self, rate: int, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._until = clock.monotonic()

    async def spend(self, octets: int) -> None:
        """Wait for as long as so much work may take; others run meanwhile."""
        now = self._clock.monotonic()
        if self._rate:
            self._until = max(self._until, now) + octets / self._rate
        if self._until - now > LEAST:
            await asyncio.sleep(self._until - now)
        else:
            await asyncio.sleep(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """A segment's records: how many there are, and which are needed.

    ``lost`` are octets of the segment that no record accounts for, or that it lacks.
    """

    records: int
    needed: tuple[BlobRef, ...]
    lost: int = 0

    @property
    def live(self) -> int:
        """The octets of a segment that holds only what is needed; 0 for nothing."""
        return size_of(self.needed)


async def unless_removed(
    blobs: SegmentStore, segment: int, look: Awaitable[R]
) -> R | None:
    """Return what a look at a segment finds; None when that was removed meanwhile."""
    try:
        return await look
    except MailError:
        if any(one.segment == segment for one in await blobs.segments()):
            raise
        return None


def size_of(refs: Collection[BlobRef]) -> int:
    """Return the octets of a segment of these records; 0 for none."""
    each = RECORD_HEADER + FOOTER_ENTRY
    octets = sum(ref.length for ref in refs) + len(refs) * each
    return octets + OVERHEAD if refs else 0


class Usage:
    """Asks the queue and every shard; any of them that is down ends it."""

    def __init__(
        self, shards: Iterable[Database], queue: MailQueue, blobs: SegmentStore
    ) -> None:
        self._shards = tuple(shards)
        self._queue = queue
        self._blobs = blobs

    async def look(
        self, info: SegmentInfo, pace: Pace, *, foresee: bool = False
    ) -> Held:
        """Return what of a segment is needed, by anyone.

        A row that nobody owns still needs its record: a message with the same content
        may own it next.  With ``foresee`` it counts as forgotten, as the collector
        would do first.
        """
        refs = await self._blobs.list_blobs(info.segment)
        needed: list[BlobRef] = []
        for start in range(0, len(refs), CHUNK):
            chunk = refs[start : start + CHUNK]
            needed += await self._needed(chunk, foresee=foresee)
            await pace.spend(LOOK * len(chunk))
        whole = size_of(refs) or OVERHEAD
        lost = abs(info.octets - whole) if info.sealed else 0
        return Held(len(refs), tuple(needed), lost)

    async def _needed(self, refs: Sequence[BlobRef], *, foresee: bool) -> list[BlobRef]:
        """Return those that the queue or a shard may still read.

        The queue is asked first: a part of an acceptance is applied to its shard,
        then dropped from the queue; whoever looks in this order sees it.
        """
        placed = collect.kept_blobs if foresee else units.placed_blobs
        found = await self._queue.live_blobs([ref.hash for ref in refs])
        needed = [ref for ref in refs if _at(found, ref)]
        rest = [ref for ref in refs if not _at(found, ref)]
        for shard in self._shards:
            if not rest:
                break
            found = await shard.read(placed, 0, tuple(ref.hash for ref in rest))
            needed += [ref for ref in rest if _at(found, ref)]
            rest = [ref for ref in rest if not _at(found, ref)]
        return needed


def _at(places: dict[bytes, Any], ref: BlobRef) -> bool:
    place = places.get(ref.hash)
    return place is not None and (place.segment, place.offset) == (
        ref.segment,
        ref.offset,
    )
