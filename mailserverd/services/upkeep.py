"""``storage check``: what must be true across databases and blobs, with progress."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import MailError
from storage.directory import ACTIVE, DISABLED
from storage.metadata import accounts, check, directory
from storage.metadata import blobs as blob_units

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from auth.people.directory import Directory
    from storage.api import Database, SegmentStore
    from storage.metadata.queue import MailQueue
    from storage.metadata.shards import Shards
    from storage.model import BlobRef
    from storage.segments import Damage

    Progress = Callable[[dict[str, Any]], None]

PAGE = 500


class Upkeep:
    """Verification of everything durable, while it is in use."""

    def __init__(
        self,
        directory_: Directory,
        shards: Shards,
        queue: MailQueue,
        blobs: SegmentStore,
    ) -> None:
        self._directory = directory_
        self._shards = shards
        self._queue = queue
        self._blobs = blobs

    async def check(self, progress: Progress) -> dict[str, Any]:
        """Check every account, blob row and segment.

        Returns {"accounts", "emails", "blobs", "faults": [text, ...], "notes":
        [text, ...]}; a note is of damage where nothing lies that anyone needs, as a
        power cut leaves of a message that was still arriving.
        """
        faults: list[str] = []
        records = emails = 0
        async for account, address, shard in self._accounts():
            records += 1
            try:
                database = self._shards.databases[shard]
                state = await database.read(accounts.state, account, None)
                found = await database.read(check.check_account, account, None)
                emails += state.message_count
            except MailError as error:
                found = (f"cannot be read: {error.text}",)
            faults += [f"{address} (shard-{shard}): {line}" for line in found]
            progress({"accounts": records, "faults": len(faults)})
        held = await self._segments(progress)
        faults += [line async for line in self._missing(held)]
        return {
            "accounts": records,
            "emails": emails,
            "blobs": held.records,
            "faults": faults + [text for one in held.damage if (text := one.fault)],
            "notes": [text for one in held.damage if (text := one.note)],
        }

    async def _accounts(self) -> AsyncIterator[tuple[int, str, int]]:
        after = 0
        while page := await self._directory.read(
            directory.list_accounts, 0, (after, PAGE)
        ):
            after = page[-1].account_id
            for record in page:
                if record.state in {ACTIVE, DISABLED}:
                    shard = self._directory.shard_of(record.account_id)
                    yield record.account_id, record.address, shard

    async def _segments(self, progress: Progress) -> Held:
        def show(report: Any, of: int) -> None:
            progress({"segment": report.segment, "of": of, "records": report.records})

        held = Held()
        for report in await self._blobs.verify(show):
            held.records += report.records
            held.damage += [Hurt(report.segment, damage) for damage in report.damage]
        for info in await self._blobs.segments():
            for ref in await self._blobs.list_blobs(info.segment):
                held.places.add((ref.hash, ref.segment, ref.offset))
        return held

    async def _missing(self, held: Held) -> AsyncIterator[str]:
        """Yield what is missing of the blobs that somebody needs."""
        for number, database in enumerate(self._shards.databases):
            async for refs in _pages(functools.partial(_rows, database)):
                for ref in held.look_up(refs):
                    if not await self._readable(ref):
                        yield f"shard-{number}: {_lost(ref)}"
        async for refs in _pages(self._queue.list_blobs):
            for ref in held.look_up(refs):
                if not await self._readable(ref):
                    yield f"queue: {_lost(ref)}"

    async def _readable(self, ref: BlobRef) -> bool:
        """True for what arrived since the segments were read."""
        try:
            async for _ in self._blobs.stream(ref):
                pass
        except MailError:
            return False
        return True


async def _pages(
    page: Callable[[bytes, int], Awaitable[tuple[BlobRef, ...]]],
) -> AsyncIterator[tuple[BlobRef, ...]]:
    after = b""
    while refs := await page(after, PAGE):
        after = refs[-1].hash
        yield refs


async def _rows(database: Database, after: bytes, limit: int) -> tuple[BlobRef, ...]:
    return await database.read(blob_units.list_blobs, 0, (after, limit))


def _lost(ref: BlobRef) -> str:
    where = f"segment {ref.segment}, offset {ref.offset}"
    return f"blob {ref.hash.hex()} is not at {where}"


@dataclasses.dataclass(slots=True)
class Hurt:
    """Damage in a segment, and how many needed blobs lie there."""

    segment: int
    damage: Damage
    needed: int = 0

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
class Held:
    """What the segments hold: ``places`` as (hash, segment, offset)."""

    records: int = 0
    places: set[tuple[bytes, int, int]] = dataclasses.field(default_factory=set)
    damage: list[Hurt] = dataclasses.field(default_factory=list)

    def look_up(self, refs: Sequence[BlobRef]) -> list[BlobRef]:
        """Return those of needed blobs that are missing; count the damaged ones."""
        for ref in refs:
            for one in self.damage:
                within = one.damage.offset <= ref.offset < one.damage.end
                one.needed += within and one.segment == ref.segment
        return [r for r in refs if (r.hash, r.segment, r.offset) not in self.places]
