"""``storage check``: what must be true of everything durable, and mending it.

It runs while mail arrives.  An account is looked at on one snapshot (a large one rule
by rule), and what spans databases is asked once more before it is called a fault.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.services.blob_check import BlobCheck
from mailserverd.services.mending import Mending
from storage.directory import LIVE, PURGED
from storage.metadata import accounts, check, check_ends, directory, directory_read
from storage.metadata.check_sql import ORPHANS
from storage.metadata.prune import account_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from auth.people.directory import Directory
    from mailserverd.services.changes import Changes
    from mailserverd.services.mending import Missing, Session, Stranger
    from storage.api import Database, SegmentStore
    from storage.directory import AccountRecord
    from storage.metadata.queue import MailQueue
    from storage.metadata.shards import Shards

    Progress = Callable[[dict[str, Any]], None]
    Forget = Callable[[int], Awaitable[None]]

PAGE = 500
log = get_logger("upkeep")


@dataclasses.dataclass(slots=True)
class Report:
    """What a check found so far, as ``storage check`` returns it."""

    accounts: int = 0
    emails: int = 0
    blobs: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    repaired: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)  # cannot be mended


class Upkeep:
    """Verification and repair of everything durable, while it is in use.

    ``forget`` drops what an account's search index holds.
    """

    def __init__(
        self,
        directory_: Directory,
        shards: Shards,
        queue: MailQueue,
        blobs: SegmentStore,
        changes: Changes,
        forget: Forget | None = None,
    ) -> None:
        self._directory = directory_
        self._shards = shards
        self._queue = queue
        self._blobs = BlobCheck(shards.databases, queue, blobs)
        self._mending = Mending(directory_, shards, queue, self._blobs, changes, forget)

    async def check(
        self, progress: Progress, *, repair: bool = False, dry_run: bool = False
    ) -> dict[str, Any]:
        """Check every account, shard, blob row and segment.

        Returns {"accounts", "emails", "blobs", "faults", "notes", "repaired", "left",
        "dry_run"}; a note is of damage where nothing lies that anyone needs, as a
        power cut leaves of a message that was still arriving.  With ``repair`` faults
        are those found, ``repaired`` says what was done about them (with ``dry_run``
        what would be), and ``left`` what cannot be mended.
        """
        report = Report()
        mend = self._mending.session(report, dry_run=dry_run) if repair else None
        await self._ends(report, mend)
        async for record in self._records():
            report.accounts += 1
            await self._account(record, report, mend)
            progress({"accounts": report.accounts, "faults": len(report.faults)})
        for database in self._shards.databases:
            await self._shard(database, report, mend)
        found = await self._blobs.run(progress)
        report.blobs = found.records
        report.faults += [str(lost) for lost in found.lost]
        report.faults += [text for one in found.damage if (text := one.fault)]
        report.notes += [text for one in found.damage if (text := one.note)]
        if mend is not None:
            await mend.blobs(found)
        log.info("checked", accounts=report.accounts, faults=len(report.faults))
        return dataclasses.asdict(report) | {"dry_run": dry_run}

    async def _ends(self, report: Report, mend: Session | None) -> None:
        """Check the directory and the queue by themselves."""
        found = await self._directory.read(check_ends.check_directory, 0, None)
        report.faults += [f"directory: {line}" for line in found]
        if found and mend is not None:
            await mend.directory()
        found = await self._queue.database.read(check_ends.check_queue, 0, None)
        report.faults += [f"queue: {line}" for line in found]
        if found and mend is not None:
            await mend.queue()

    # --- accounts, as the directory knows them ----------------------------------

    async def _records(self) -> AsyncIterator[AccountRecord]:
        after = 0
        while page := await self._directory.read(
            directory.list_accounts, 0, (after, PAGE)
        ):
            after = page[-1].account_id
            for record in page:
                yield record

    async def _account(
        self, record: AccountRecord, report: Report, mend: Session | None
    ) -> None:
        account = record.account_id
        try:
            where = self._shards.shard_of(account)
            database = self._shards.databases[where]
            state = await database.read(accounts.state, account, None)
            report.emails += state.message_count
            found = await self._rows(database, account, state.message_count)
        except MailError as error:
            if error.kind is not Kind.NOT_FOUND:
                text = f"{record.address}: cannot be read: {error.text}"
                report.faults.append(text)
                report.left.append(text)
            elif missing := await self._missing(record):
                report.faults.append(f"{record.address}: {missing}")
                if mend is not None:
                    await mend.missing(missing)
            return
        name = f"{record.address} ({database.name})"
        report.faults += [f"{name}: {line}" for line in found]
        if found and mend is not None:
            await mend.account(database, account, name)

    async def _rows(
        self, database: Database, account: int, messages: int
    ) -> tuple[str, ...]:
        """Return what is wrong with an account's rows: on one snapshot if that does
        not take long, else part by part."""
        if messages < check.SMALL:
            return await database.read(check.check_account, account, None)
        found: tuple[str, ...] = ()
        for part in await database.read(check.parts, account, None):
            found += await database.read(check.check_part, account, part)
        return found

    async def _missing(self, record: AccountRecord) -> Missing | None:
        """Return where an account's rows are; None when nothing is wrong any more."""
        now = await self._record(record.account_id)
        if now is None or now.state not in LIVE:
            return None
        here, others, down = None, [], []
        for database in self._shards.databases:
            try:
                there = await database.read(accounts.exists, now.account_id, None)
            except MailError:
                down.append(database.name)
                continue
            if database.uuid == now.shard:
                here = database
                if there:
                    return None
            elif there:
                others.append(database)
        return self._mending.missing(now, here, others, down)

    async def _record(self, account: int) -> AccountRecord | None:
        try:
            return await self._directory.read(directory_read.account, account, None)
        except MailError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return None

    # --- shards, as they are ------------------------------------------------------

    async def _shard(
        self, database: Database, report: Report, mend: Session | None
    ) -> None:
        """Check what no account of the directory leads to."""
        try:
            async for stranger in self._strangers(database):
                report.faults.append(f"{database.name}: {stranger}")
                if mend is not None:
                    await mend.stranger(stranger)
            found = await database.read(check.check_shard, 0, None)
            report.faults += [f"{database.name}: {line}" for line in found]
            if found and mend is not None:
                await mend.owners(database)
        except MailError as error:
            text = f"{database.name}: cannot be read: {error.text}"
            report.faults.append(text)
            report.left.append(text)

    async def _strangers(self, database: Database) -> AsyncIterator[Stranger]:
        """Yield accounts with rows here that the directory has not here."""
        seen: set[int] = set()
        async for account in self._present(database):
            record = await self._record(account)
            if account in seen or _is_home(record, database):
                continue
            if not await self._still(database, account):
                continue
            seen.add(account)
            stranger = await self._mending.stranger(database, account, record)
            if stranger is not None:
                yield stranger

    async def _present(self, database: Database) -> AsyncIterator[int]:
        """Yield the accounts with a row, then those with other rows alone."""
        after = 0
        while page := await database.read(account_ids, 0, (after, PAGE)):
            after = page[-1]
            for account in page:
                yield account
        for table in ORPHANS:
            orphan: int | None = 0
            while orphan is not None:
                orphan = await database.read(check.orphans, orphan, table)
                if orphan is not None:
                    yield orphan

    async def _still(self, database: Database, account: int) -> bool:
        """Return whether an account has rows here even now."""
        if await database.read(accounts.exists, account, None):
            return True
        for table in ORPHANS:
            if await database.read(check.orphans, account - 1, table) == account:
                return True
        return False


def _is_home(record: AccountRecord | None, database: Database) -> bool:
    """Return whether an account may have rows here: it lives here, or is just being
    made or removed."""
    if record is None or record.state == PURGED:
        return False
    return record.state not in LIVE or record.shard == database.uuid
