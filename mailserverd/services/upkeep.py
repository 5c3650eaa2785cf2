"""``storage check``: what must be true across databases and blobs, with progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import MailError
from storage.directory import ACTIVE, DISABLED
from storage.metadata import accounts, check, directory
from storage.metadata import blobs as blob_units

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from auth.people.directory import Directory
    from storage.api import Database
    from storage.blobs.file import FileBlobStore
    from storage.metadata.shards import Shards
    from storage.model import BlobRef

    Progress = Callable[[dict[str, Any]], None]

PAGE = 500


class Upkeep:
    """Verification of everything durable, while it is in use."""

    def __init__(
        self, directory_: Directory, shards: Shards, blobs: FileBlobStore
    ) -> None:
        self._directory = directory_
        self._shards = shards
        self._blobs = blobs

    async def check(self, progress: Progress) -> dict[str, Any]:
        """Check every account, blob row and segment.

        Returns {"accounts", "emails", "blobs", "faults": [text, ...]}.
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
        places, count = await self._segments(faults, progress)
        for number, database in enumerate(self._shards.databases):
            faults += await self._rows(number, database, places)
        return {
            "accounts": records,
            "emails": emails,
            "blobs": count,
            "faults": faults,
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

    async def _segments(
        self, faults: list[str], progress: Progress
    ) -> tuple[set[tuple[bytes, int, int]], int]:
        def show(report: Any, of: int) -> None:
            progress({"segment": report.segment, "of": of, "records": report.records})

        count = 0
        for report in await self._blobs.verify(show):
            count += report.records
            faults += [f"segment {report.segment}: {d}" for d in report.damage]
        places: set[tuple[bytes, int, int]] = set()
        for info in await self._blobs.segments():
            for ref in await self._blobs.list_blobs(info.segment):
                places.add((ref.hash, ref.segment, ref.offset))
        return places, count

    async def _rows(
        self, number: int, database: Database, places: set[tuple[bytes, int, int]]
    ) -> list[str]:
        faults: list[str] = []
        after = b""
        while True:
            rows: tuple[BlobRef, ...] = await database.read(
                blob_units.list_blobs, 0, (after, PAGE)
            )
            if not rows:
                return faults
            after = rows[-1].hash
            faults += [
                f"shard-{number}: blob {ref.hash.hex()} is not at segment "
                f"{ref.segment}, offset {ref.offset}"
                for ref in rows
                if (ref.hash, ref.segment, ref.offset) not in places
            ]
