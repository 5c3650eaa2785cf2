"""``storage check --repair``: what is done about each kind of fault.

Everything goes the way that all changes go: units of work of the database's writer,
one account at a time.  Nothing that a user could read is thrown away.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from auth.people import addresses
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from storage.directory import LIVE, PURGED
from storage.metadata import accounts, check, check_ends, directory, repair
from storage.metadata import blobs as blob_units
from storage.metadata.purge import purge_account
from storage.model import NewAccount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from auth.people.directory import Directory
    from mailserverd.services.blob_check import BlobCheck, Found, Lost
    from mailserverd.services.changes import Changes
    from mailserverd.services.upkeep import Report
    from storage.api import Database
    from storage.directory import AccountRecord
    from storage.metadata.queue import MailQueue
    from storage.metadata.shards import Shards
    from storage.model import BlobRef

    Forget = Callable[[int], Awaitable[None]]

PURGE_ROWS = 500
NO_BLOB = "email without its blob"
MAX_BLOBS = 10_000  # rows made anew in one run
log = get_logger("upkeep")


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """A live account without a row on its shard; ``others`` are shards that have one,
    ``down`` names of those that cannot be asked."""

    record: AccountRecord
    here: Database | None
    others: tuple[Database, ...]
    down: tuple[str, ...]

    def __str__(self) -> str:
        place = "its shard" if self.here is None else self.here.name
        text = f"has no row on {place}"
        if self.others:
            text += f"; {', '.join(one.name for one in self.others)} has one"
        return text


@dataclasses.dataclass(frozen=True, slots=True)
class Stranger:
    """Rows of an account on a shard where the directory does not have it."""

    database: Database
    account: int
    record: AccountRecord | None
    address: str  # of its identity; "" none
    emails: int

    @property
    def known(self) -> bool:
        """True when the directory has ever had this account."""
        return self.record is not None and bool(self.record.address)

    def __str__(self) -> str:
        who = f"account {self.account}"
        if self.address:
            who += f" ({self.address})"
        if not self.known:
            why = "is not in the directory"
        elif self.record is not None and self.record.state == PURGED:
            why = "was removed, and has rows yet"
        else:
            why = "lives on another shard, says the directory"
        return f"{who} {why}: {self.emails} emails"


class Mending:
    """What repair works with, and how it looks at what does not fit together."""

    def __init__(
        self,
        directory_: Directory,
        shards: Shards,
        queue: MailQueue,
        blobs: BlobCheck,
        changes: Changes,
        forget: Forget | None,
    ) -> None:
        self.changes = changes
        self.people = directory_
        self.shards = shards
        self.queue = queue
        self.blobs = blobs
        self.forget = forget

    def session(self, report: Report, *, dry_run: bool) -> Session:
        """Begin to mend, for one report."""
        return Session(self, report, dry_run=dry_run)

    def missing(
        self,
        record: AccountRecord,
        here: Database | None,
        others: Sequence[Database],
        down: Sequence[str],
    ) -> Missing:
        """Describe an account without a row."""
        return Missing(record, here, tuple(others), tuple(down))

    async def stranger(
        self, database: Database, account: int, record: AccountRecord | None
    ) -> Stranger | None:
        """Describe an account where it should not be; None when its row is not where
        it should be, which is told of the account itself."""
        if record is not None and record.state in LIVE:
            for home in self.shards.databases:
                if home.uuid != record.shard:
                    continue
                if not await home.read(accounts.exists, account, None):
                    return None
        address, emails = await database.read(check.who, account, None)
        return Stranger(database, account, record, address, emails)


class Session:
    """One run of repair: says what it does, or with ``dry_run`` what it would do."""

    def __init__(self, tools: Mending, report: Report, *, dry_run: bool) -> None:
        self._tools = tools
        self._report = report
        self._dry_run = dry_run

    def _done(self, where: str, line: str) -> None:
        self._report.repaired.append(f"{where}: {line}")
        if not self._dry_run:
            log.info("repaired", where=where, what=line)

    def _left(self, where: str, line: str) -> None:
        self._report.left.append(f"{where}: {line}")

    # --- accounts -----------------------------------------------------------------

    async def account(self, database: Database, account: int, name: str) -> None:
        """Mend an account's rows, then look at them again."""
        try:
            if self._dry_run:
                await database.write(repair.rehearse, account, None)
                return
            if await self._mend(database, account, name):
                await self._renew(database, account, name)
            await self._look_again(database, account, name)
        except MailError as error:
            if error.kind is not Kind.CONFLICT or not self._dry_run:
                self._left(name, f"repair failed: {error.text}")
                return
            for line in error.details["lines"]:  # type: ignore[attr-defined]
                self._done(name, line)
            if error.details["distrust"]:
                self._done(name, "epoch raised, every UIDVALIDITY renewed")

    async def _mend(self, database: Database, account: int, name: str) -> bool:
        distrust = False
        for step in range(await database.read(repair.steps, account, None)):
            more = True
            while more:
                done = await database.write(repair.mend, account, step)
                for line in done.lines:
                    self._done(name, line)
                distrust = distrust or done.distrust
                more = done.more
        return distrust

    async def _look_again(self, database: Database, account: int, name: str) -> None:
        """Tell what is still wrong, and clients that something changed."""
        for part in await database.read(check.parts, account, None):
            for line in await database.read(check.check_part, account, part):
                if not line.startswith(NO_BLOB):  # blobs are looked for later
                    self._left(name, line)
        state = await database.read(accounts.state, account, None)
        self._tools.changes.announce(account, state.modseq)

    async def _renew(self, database: Database, account: int, name: str) -> None:
        self._done(name, await database.write(repair.renew, account, None))
        if self._tools.forget is not None:
            await self._tools.forget(account)

    async def missing(self, missing: Missing) -> None:
        """Find an account that its shard lacks elsewhere, or begin its row anew."""
        record, account = missing.record, missing.record.account_id
        if missing.down or missing.here is None:
            self._left(record.address, "not every shard can be asked")
        elif len(missing.others) > 1:
            self._left(record.address, "it is on several shards: which one is it?")
        elif missing.others:
            (other,) = missing.others
            if not self._dry_run:
                await self._tools.people.write(directory.set_shard, account, other.uuid)
            self._done(record.address, f"lives on {other.name}, where its rows are")
        else:
            await self._restore(missing.here, account, record.address, record.name)

    async def _restore(
        self, database: Database, account: int, address: str, name: str = ""
    ) -> None:
        """Make the account's row on a shard, from what else it has there."""
        if self._dry_run:
            self._done(address, f"row on {database.name} made anew")
            return
        new = NewAccount(address, name)
        done = await database.write(repair.restore, account, new)
        for line in done.lines:
            self._done(address, f"{line} on {database.name}")
        await self._mend(database, account, address)
        await self._renew(database, account, address)
        await self._look_again(database, account, address)

    async def stranger(self, stranger: Stranger) -> None:
        """Bring back what the directory lost; clear what was removed."""
        where = f"{stranger.database.name}, account {stranger.account}"
        if stranger.known:
            removed = stranger.record is not None and stranger.record.state == PURGED
            if removed or not stranger.emails:
                await self._purge(stranger, where)
            else:
                self._left(where, "it lives elsewhere, too: nothing tells which is it")
            return
        parsed = addresses.canonical(stranger.address) if stranger.address else None
        if parsed is None and stranger.emails:
            self._left(where, "its address is lost; nobody can be given its mail")
        elif parsed is None:
            await self._purge(stranger, where)
        else:
            await self._bring_back(stranger, where, parsed)

    async def _bring_back(
        self, stranger: Stranger, where: str, parsed: tuple[str, str]
    ) -> None:
        text = "in the directory again, disabled and without a password"
        database, account = stranger.database, stranger.account
        try:
            if not self._dry_run:
                await self._tools.people.write(
                    directory.restore_account, account, (*parsed, database.uuid)
                )
            self._done(where, f"{stranger.address} {text}")
            await self._restore(database, account, stranger.address)
        except MailError as error:
            self._left(where, f"{stranger.address} cannot be restored: {error.text}")

    async def _purge(self, stranger: Stranger, where: str) -> None:
        gone = 0
        while not self._dry_run:
            rows = await stranger.database.write(
                purge_account, stranger.account, PURGE_ROWS
            )
            if not rows:
                break
            gone += rows
        self._done(where, f"rows removed: {gone}" if gone else "rows removed")

    # --- the ends -------------------------------------------------------------------

    async def directory(self) -> None:
        """Mend the directory's own references."""
        people = self._tools.people
        if self._dry_run:
            self._done("directory", "what leads nowhere dropped")
            return
        for line in await people.write(check_ends.mend_directory, 0, None):
            self._done("directory", line)
        for line in await people.read(check_ends.check_directory, 0, None):
            self._left("directory", line)

    async def queue(self) -> None:
        """Mend the queue's own references and counts."""
        database = self._tools.queue.database
        if self._dry_run:
            self._done("queue", "what leads nowhere dropped, and counted anew")
            return
        for line in await database.write(check_ends.mend_queue, 0, None):
            self._done("queue", line)
        for line in await database.read(check_ends.check_queue, 0, None):
            self._left("queue", line)

    # --- blobs ------------------------------------------------------------------------

    async def owners(self, database: Database) -> None:
        """Forget uploads without a blob."""
        if self._dry_run:
            self._done(database.name, "uploads without a blob forgotten")
        elif gone := await database.write(blob_units.drop_homeless, 0, None):
            self._done(database.name, f"{gone} uploads without a blob forgotten")

    async def blobs(self, found: Found) -> None:
        """Look for lost blobs in all segments, and point at those that are there."""
        rowless: dict[bytes, list[Database]] = {}
        for database in self._tools.shards.databases:
            try:
                hashes = await database.read(blob_units.blobless, 0, MAX_BLOBS)
            except MailError:
                continue
            for one in hashes:
                rowless.setdefault(one, []).append(database)
        misplaced = [*found.lost, *found.spoiled]
        wanted = {lost.ref.hash for lost in misplaced} | set(rowless)
        places = await self._tools.blobs.find(wanted) if wanted else {}
        if not self._dry_run:
            places = await self._tools.blobs.copy_out(places)
        for lost in misplaced:
            await self._move(lost, places.get(lost.ref.hash))
        for key, databases in rowless.items():
            for database in databases:
                await self._row(database, key, places.get(key))

    async def _move(self, lost: Lost, place: BlobRef | None) -> None:
        name = f"blob {lost.ref.hash.hex()}"
        if place is None:
            self._left(lost.database, f"{name} is lost: restore it from a backup")
            return
        if not self._dry_run:
            await self._tools.blobs.move(lost, place)
        self._done(lost.database, f"{name} found in segment {place.segment}")

    async def _row(self, database: Database, key: bytes, place: BlobRef | None) -> None:
        name = f"blob {key.hex()}"
        if place is None:
            self._left(database.name, f"{name} is lost: restore it from a backup")
            return
        if not self._dry_run:
            await database.write(blob_units.restore_blobs, 0, (place,))
        self._done(database.name, f"{name} found in segment {place.segment}")
