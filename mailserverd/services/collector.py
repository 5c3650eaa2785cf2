"""Removes bytes that nobody owns, and packs segments that are mostly dead.

The order of the reads is what makes it safe while mail arrives:

1. Rows of blobs without an owner are forgotten in the shards' own transactions: from
   then on a message with the same content brings its own record.
2. The queue is asked before the shards.  A part of an acceptance is first applied to
   its shard, then dropped from the queue; whoever looks in this order sees it.
3. Only sealed segments whose last write is older than a grace period are touched: what
   is being delivered now lies in younger ones.

A shard or queue that cannot be read ends the run before anything is removed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter
from storage.compaction import Policy, Remove, SegmentUse, plan
from storage.metadata import blobs as units
from storage.segments import RECORD_HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Database, SegmentStore
    from storage.metadata.queue import MailQueue
    from storage.model import BlobRef

log = get_logger("collector")
CHUNK = 500  # rows of one unit of work
FREED = counter("blob_octets_freed", "Octets of segments removed by the collector")


@dataclasses.dataclass(frozen=True, slots=True)
class Collected:
    """What a run did."""

    expired_uploads: int = 0
    forgotten: int = 0  # blobs without an owner
    removed: int = 0  # segments
    rewritten: int = 0  # segments
    freed: int = 0  # octets


class Collector:
    """One run at a time; see the module for why it is safe."""

    def __init__(
        self,
        shards: Sequence[Database],
        queue: MailQueue,
        blobs: SegmentStore,
        clock: Clock,
        policy: Policy | None = None,
    ) -> None:
        self._shards = tuple(shards)
        self._queue = queue
        self._blobs = blobs
        self._clock = clock
        self._policy = policy or Policy()
        self._running = asyncio.Lock()

    async def run(self) -> Collected:
        """Expire, forget, remove and pack; a store that is down raises its error."""
        async with self._running:
            expired = forgotten = 0
            for shard in self._shards:
                expired += await self._expire(shard)
                forgotten += await self._forget(shard)
            done = await self._compact()
        result = dataclasses.replace(done, expired_uploads=expired, forgotten=forgotten)
        if any(dataclasses.astuple(result)):
            log.info("blobs-collected", **dataclasses.asdict(result))
        return result

    async def _expire(self, shard: Database) -> int:
        total = 0
        while done := await shard.write(units.expire_uploads, 0, CHUNK):
            total += done
        return total

    async def _forget(self, shard: Database) -> int:
        total, after = 0, b""
        while True:
            found = await shard.read(units.unowned_blobs, 0, (after, CHUNK))
            if not found:
                return total
            hashes = tuple(ref.hash for ref in found)
            total += len(await shard.write(units.forget_blobs, 0, hashes))
            after = hashes[-1]

    async def _compact(self) -> Collected:
        live: dict[int, list[BlobRef]] = {}
        uses = []
        for info in await self._blobs.segments():
            quiet = self._clock.now() - info.modified
            if not info.sealed or quiet < self._policy.grace:
                uses.append(SegmentUse(info.segment, False, info.octets, 1, quiet))
                continue
            needed = await self._needed(await self._blobs.list_blobs(info.segment))
            live[info.segment] = needed
            octets = sum(ref.length + RECORD_HEADER for ref in needed)
            uses.append(SegmentUse(info.segment, True, info.octets, octets, quiet))
        sizes = {use.segment: use.octets for use in uses}
        removed = rewritten = freed = 0
        for action in plan(uses, self._policy):
            if isinstance(action, Remove):
                await self._blobs.remove_segment(action.segment)
                removed, freed = removed + 1, freed + sizes[action.segment]
            else:
                await self._rewrite([r for s in action.segments for r in live[s]])
                rewritten += len(action.segments)
        FREED.inc(freed)
        return Collected(removed=removed, rewritten=rewritten, freed=freed)

    async def _needed(self, refs: Sequence[BlobRef]) -> list[BlobRef]:
        """Return the records that the queue or a shard may still read."""
        needed: list[BlobRef] = []
        for start in range(0, len(refs), CHUNK):
            chunk = refs[start : start + CHUNK]
            hashes = tuple(ref.hash for ref in chunk)
            places = [await self._queue.live_blobs(hashes)]  # before the shards
            places += [
                await shard.read(units.placed_blobs, 0, hashes)
                for shard in self._shards
            ]
            needed += [ref for ref in chunk if any(_at(p, ref) for p in places)]
        return needed

    async def _rewrite(self, refs: list[BlobRef]) -> None:
        moves = await self._blobs.rewrite(refs)
        pairs = tuple(moves.items())
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            for shard in self._shards:
                await shard.write(units.move_blobs, 0, chunk)
            await self._queue.move_blobs(chunk)


def _at(places: dict[bytes, Any], ref: BlobRef) -> bool:
    place = places.get(ref.hash)
    return place is not None and (place.segment, place.offset) == (
        ref.segment,
        ref.offset,
    )
