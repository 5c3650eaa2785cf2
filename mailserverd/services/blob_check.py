"""``storage check`` of blobs: damage, and what rows need that is not where they say.

Segments are looked at a few at a time: of each record nothing but eight octets is
kept, and those of at most ``RECORDS`` at once.
"""

from __future__ import annotations

import asyncio
import bisect
import collections
import contextlib
import dataclasses
import functools
from array import array
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core.errors import MailError
from mailserverd.services.usage import unless_removed
from storage.metadata import blobs as units
from storage.metadata import retired

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from storage.api import Database, SegmentStore
    from storage.metadata.queue import MailQueue
    from storage.model import BlobRef
    from storage.report import SegmentInfo, SegmentReport
    from storage.segments import Damage

    Progress = Callable[[dict[str, Any]], None]

R = TypeVar("R")
PAGE = 500  # rows read at once
AHEAD = 4  # segments under way
RECORDS = 4_000_000  # whose places are known at once: 32 MB
MAX_LOST = 10_000  # blobs that are looked for everywhere


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """A blob that is not where a database (by name) says it is."""

    database: str
    ref: BlobRef

    def __str__(self) -> str:
        where = f"segment {self.ref.segment}, offset {self.ref.offset}"
        return f"{self.database}: blob {self.ref.hash.hex()} is not at {where}"


@dataclasses.dataclass(slots=True)
class Hurt:
    """Damage in a segment, and how many needed blobs lie there."""

    segment: int
    damage: Damage
    needed: int = 0

    def holds(self, ref: BlobRef) -> bool:
        """Return whether a record of the segment begins in the damage."""
        return self.damage.offset <= ref.offset < self.damage.end

    @property
    def fault(self) -> str:
        """The text of a fault; "" for none."""
        whole = self.damage.offset < self.damage.end  # else the footer's
        return "" if whole and not self.needed else f"{self}: {self.needed} blobs lost"

    @property
    def note(self) -> str:
        """The text of a note; "" for none."""
        return "" if self.fault else f"{self}: nothing needed lies there"

    def __str__(self) -> str:
        where = f"segment {self.segment}, {self.damage.offset} to {self.damage.end}"
        return f"{where}, {self.damage.why}"


@dataclasses.dataclass(slots=True)
class Found:
    """What a look at all blobs found."""

    records: int = 0
    damage: list[Hurt] = dataclasses.field(default_factory=list)
    lost: list[Lost] = dataclasses.field(default_factory=list)
    spoiled: list[Lost] = dataclasses.field(default_factory=list)  # lie in damage


async def _ahead(
    work: Callable[[SegmentInfo], Awaitable[R]], infos: Iterable[SegmentInfo]
) -> AsyncIterator[tuple[SegmentInfo, R]]:
    """Yield segments with what ``work`` returns, in their order, a few under way: on
    S3 each one costs the time of some requests."""
    running: collections.deque[tuple[SegmentInfo, asyncio.Future[R]]]
    running = collections.deque()
    try:
        for info in infos:
            running.append((info, asyncio.ensure_future(work(info))))
            if len(running) >= AHEAD:
                first, done = running.popleft()
                yield first, await done
        while running:
            first, done = running.popleft()
            yield first, await done
    finally:
        for _, left in running:
            left.cancel()
        await asyncio.gather(*(left for _, left in running), return_exceptions=True)


class BlobCheck:
    """Compares segments with the rows of all databases that can be read."""

    def __init__(
        self, shards: Sequence[Database], queue: MailQueue, blobs: SegmentStore
    ) -> None:
        self._shards = {database.name: database for database in shards}
        self._queue = queue
        self._blobs = blobs

    async def run(self, progress: Progress) -> Found:
        """Read every segment, then look up every row."""
        found = Found()
        infos = await self._blobs.segments()
        number = 0
        async for _, report in _ahead(self._verified, infos):
            number += 1
            if report is not None:
                found.records += report.records
                found.damage += [Hurt(report.segment, one) for one in report.damage]
            progress({"segment": number, "of": len(infos), "records": found.records})
        unlisted: set[int] | None = {info.segment for info in infos}
        async for places in self._places(infos):
            await self._look_up(found, places, unlisted)
            unlisted = None
        return found

    async def _verified(self, info: SegmentInfo) -> SegmentReport | None:
        look = self._blobs.verify_segment(info.segment)
        return await unless_removed(self._blobs, info.segment, look)

    async def _places(
        self, infos: Iterable[SegmentInfo]
    ) -> AsyncIterator[dict[int, array[int]]]:
        """Yield the places of records, sorted, by segment: some segments at a time."""
        places: dict[int, array[int]] = {}
        count = 0
        async for info, refs in _ahead(self._listed, infos):
            if places and count + len(refs) > RECORDS:
                yield places
                places, count = {}, 0
            places[info.segment] = array("q", sorted(map(_place, refs)))
            count += len(refs)
        yield places

    async def _listed(self, info: SegmentInfo) -> list[BlobRef]:
        look = self._blobs.list_blobs(info.segment)
        return await unless_removed(self._blobs, info.segment, look) or []

    async def _look_up(
        self, found: Found, places: dict[int, array[int]], listed: set[int] | None
    ) -> None:
        """Find rows of these segments without a record, and those in damage; given
        the numbers of all segments, rows of others, too."""
        hurt: dict[int, list[Hurt]] = {}
        for one in found.damage:
            hurt.setdefault(one.segment, []).append(one)
        async for name, refs in self._rows():
            for ref in refs:
                if ref.segment in places:
                    spoiled = [h for h in hurt.get(ref.segment, ()) if h.holds(ref)]
                    for one in spoiled:
                        one.needed += 1
                    if spoiled and len(found.spoiled) < MAX_LOST:
                        found.spoiled.append(Lost(name, ref))
                    missing = not _holds(places[ref.segment], _place(ref))
                else:
                    missing = listed is not None and ref.segment not in listed
                if not missing or len(found.lost) >= MAX_LOST:
                    continue
                if not await self._readable(name, ref):
                    found.lost.append(Lost(name, ref))

    async def _rows(self) -> AsyncIterator[tuple[str, tuple[BlobRef, ...]]]:
        """Yield what databases need, page by page; those that are down are skipped:
        that is told of their accounts."""
        for name, database in self._shards.items():
            try:
                async for refs in _pages(functools.partial(_rows, database)):
                    yield name, refs
            except MailError:
                continue
        async for refs in _pages(self._queue.list_blobs):
            yield "queue", refs

    async def _readable(self, name: str, ref: BlobRef) -> bool:
        """True for what arrived, was moved, or is needed no more, since the segments
        were listed."""
        if name == "queue":
            now = (await self._queue.live_blobs([ref.hash])).get(ref.hash)
        else:
            placed = await self._shards[name].read(units.placed_blobs, 0, (ref.hash,))
            now = placed.get(ref.hash)
        if now is None:
            return True
        return await self._whole(now)

    # --- mending ----------------------------------------------------------------

    async def find(self, hashes: set[bytes]) -> dict[bytes, BlobRef]:
        """Return where blobs lie, by hash, as the segments themselves say: in retired
        ones only what lies nowhere else."""
        found: dict[bytes, BlobRef] = {}
        infos = await self._blobs.segments()
        closed = await self._retired([info.segment for info in infos])
        infos.sort(key=lambda info: info.segment in closed)
        async for _, refs in _ahead(self._listed, infos):
            for ref in refs:
                wanted = ref.hash in hashes and ref.hash not in found
                if wanted and await self._whole(ref):
                    found[ref.hash] = ref
        return found

    async def copy_out(self, places: dict[bytes, BlobRef]) -> dict[bytes, BlobRef]:
        """Copy what lies in retired segments, into which no row can point any more;
        return where everything lies now."""
        copies: dict[BlobRef, BlobRef] = {}
        for segment in await self._retired({ref.segment for ref in places.values()}):
            here = [ref for ref in places.values() if ref.segment == segment]
            copies |= await self._blobs.rewrite(here)
        return {key: copies.get(ref, ref) for key, ref in places.items()}

    async def _retired(self, segments: Iterable[int]) -> set[int]:
        """Return those of the segments that some database refuses."""
        numbers, found = tuple(segments), set[int]()
        for database in (self._queue.database, *self._shards.values()):
            for start in range(0, len(numbers), PAGE):
                with contextlib.suppress(MailError):  # nothing is mended there
                    found |= (
                        await database.read(
                            retired.retired_since, 0, numbers[start : start + PAGE]
                        )
                    ).keys()
        return found

    async def _whole(self, ref: BlobRef) -> bool:
        try:
            async for _ in self._blobs.stream(ref):
                pass
        except MailError:
            return False
        return True

    async def move(self, lost: Lost, found: BlobRef) -> None:
        """Let a database's row point at where its blob was found."""
        moves = ((lost.ref, found),)
        if lost.database == "queue":
            await self._queue.move_blobs(moves)
        else:
            await self._shards[lost.database].write(units.move_blobs, 0, moves)


def _place(ref: BlobRef) -> int:
    """Return 64 bits that stand for a record's hash and offset in its segment."""
    return hash((ref.hash, ref.offset))


def _holds(places: array[int], place: int) -> bool:
    at = bisect.bisect_left(places, place)
    return at < len(places) and places[at] == place


async def _pages(
    page: Callable[[bytes, int], Awaitable[tuple[BlobRef, ...]]],
) -> AsyncIterator[tuple[BlobRef, ...]]:
    after = b""
    while refs := await page(after, PAGE):
        after = refs[-1].hash
        yield refs


async def _rows(database: Database, after: bytes, limit: int) -> tuple[BlobRef, ...]:
    return await database.read(units.list_blobs, 0, (after, limit))
