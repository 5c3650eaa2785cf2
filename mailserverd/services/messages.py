"""Messages: reading, flags, copies, queries; IMAP, JMAP, POP3 and /v1 call the same.

Every call checks the access first, and every write announces its modseq after the
commit.  Large sets are cut into units of ``CHUNK`` messages, so that deliveries to
the same shard wait for milliseconds only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, BinaryIO

from mailserverd.core.errors import Kind, MailError
from mailserverd.services.access import check, since_when
from mailserverd.services.copying import copy_in_chunks, joined
from mailserverd.services.views import load_view
from storage.metadata import (
    blobs,
    changes,
    columns,
    copies,
    flags,
    listing,
    messages,
    query,
    texts,
    threads,
)
from storage.model import BatchResult, Column, StoreFlags, StoreResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from typing import TypeVar

    from mailserverd.core.ports import Clock
    from mailserverd.core.types import Access
    from mailserverd.services.changes import Changes
    from storage.api import BlobStore, MetadataStore, Row
    from storage.model import (
        BlobRef,
        CopyResult,
        EmailPatch,
        EmailQuery,
        EmailRow,
        Flags,
        ObjectChanges,
        QueryResult,
        Since,
        View,
        ViewDelta,
    )

    T = TypeVar("T")

FEW = 64  # rows read, or messages changed, on the loop
CHUNK = 500  # rows read by one hop
STORE_CHUNK = 2000  # messages changed by one unit
UPLOAD_SECONDS = 86_400


class Messages:
    """The messages of accounts."""

    def __init__(
        self, store: MetadataStore, blobs: BlobStore, changes: Changes, clock: Clock
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._changes = changes
        self._clock = clock

    # --- reading ----------------------------------------------------------------

    async def view(self, access: Access, mailbox_id: int) -> View:
        """Return a whole mailbox as arrays in uid order.  NOT_FOUND."""
        check(access)
        return await load_view(self._store, access, mailbox_id)

    async def delta(
        self, access: Access, mailbox_id: int, since_modseq: int
    ) -> ViewDelta:
        """Return what changed in a mailbox since a modseq.  NOT_FOUND.

        Cheap when little happened: an announcement is answered on the loop.
        """
        check(access)
        args = (mailbox_id, since_modseq)
        quick = await self._store.read(access, messages.quick_delta, args)
        if quick is not None:
            return quick
        return await self._store.read(access, messages.delta, args)

    async def vanished(
        self, access: Access, mailbox_id: int, since_modseq: int
    ) -> tuple[int, ...] | None:
        """Return uids expunged since a modseq (RFC 7162 section 3.2.5.1).

        None when tombstones do not reach back that far: the caller then answers
        from the client's known uids.  NOT_FOUND.
        """
        check(access)
        args = (mailbox_id, since_modseq)
        return await self._store.read(access, messages.vanished, args)

    async def rows(
        self, access: Access, email_ids: Sequence[int], columns: Column
    ) -> dict[int, EmailRow]:
        """Return rows by id, in the order asked for; unknown ids are left out."""
        check(access)
        if len(email_ids) <= FEW:
            return await self._store.read(
                access, messages.few_rows, (email_ids, columns)
            )
        found: dict[int, EmailRow] = {}
        for start in range(0, len(email_ids), CHUNK):
            some = email_ids[start : start + CHUNK]
            found |= await self._store.read(access, messages.read_rows, (some, columns))
        return found

    async def page(
        self,
        access: Access,
        mailbox_id: int,
        uid_low: int,
        uid_high: int,
        columns: Column,
        limit: int = CHUNK,
    ) -> list[tuple[int, EmailRow]]:
        """Return (uid, row) of a range of uids in order, at most ``limit``."""
        check(access)
        args = (mailbox_id, uid_low, uid_high, columns, limit)
        few = min(limit, uid_high - uid_low + 1) <= FEW
        unit = messages.few_page if few else messages.read_page
        return await self._store.read(access, unit, args)

    async def columns(
        self,
        access: Access,
        mailbox_id: int,
        uids: Sequence[int],
        fields: tuple[str, ...],
    ) -> list[Row]:
        """Return (uid, field, ...) of ascending uids; see ``storage.metadata.columns``.

        The quick way for FETCH: only what is asked for, no objects.  Uids that do not
        exist are left out; ask for about ``CHUNK`` at once.
        """
        check(access)
        unit = columns.few if len(uids) <= FEW else columns.read
        return await self._store.read(access, unit, (mailbox_id, uids, fields))

    async def get_states(
        self, access: Access, email_ids: Sequence[int]
    ) -> dict[int, tuple[int, Flags, tuple[int, ...]]]:
        """Return (modseq, flags, mailboxes) by id of emails that JMAP shows."""
        check(access)
        few = len(email_ids) <= FEW
        unit = messages.few_states if few else messages.get_states
        return await self._store.read(access, unit, email_ids)

    async def listed(
        self, access: Access, email_ids: Sequence[int], columns: Column, since: int
    ) -> listing.Listed:
        """Return the states of emails, and the rows of those that changed since a
        modseq, at one moment."""
        check(access)
        unit = listing.few if len(email_ids) <= FEW else listing.read
        return await self._store.read(access, unit, (email_ids, columns, since))

    async def query(self, access: Access, query_args: EmailQuery) -> QueryResult:
        """Email/query (RFC 8621 section 4.4), text conditions resolved before.

        ANCHOR_NOT_FOUND, UNSUPPORTED (filter or sort).
        """
        check(access)
        quick = await self._store.read(access, query.quick, query_args)
        if quick is not None:
            return quick
        return await self._store.read(access, query.run, query_args)

    async def changes(
        self, access: Access, since: int | Since, limit: int | None = None
    ) -> ObjectChanges:
        """Email/changes (RFC 8621 section 4.3): CANNOT_CALCULATE_CHANGES.

        ``since`` is a modseq, or a ``Since`` when a modseq may be split.
        """
        check(access)
        return await self._store.read(access, changes.emails, since_when(since, limit))

    async def thread_changes(
        self, access: Access, since: int | Since, limit: int | None = None
    ) -> ObjectChanges:
        """Thread/changes (RFC 8621 section 3.2): CANNOT_CALCULATE_CHANGES."""
        check(access)
        return await self._store.read(access, changes.threads, since_when(since, limit))

    async def threads(
        self, access: Access, thread_ids: Sequence[int]
    ) -> dict[int, tuple[int, ...]]:
        """Return the email ids of threads, oldest first; empty ones are left out."""
        check(access)
        found = None
        if len(thread_ids) <= FEW:
            found = await self._store.read(access, threads.few, thread_ids)
        if found is None:
            found = await self._store.read(access, threads.read, thread_ids)
        return found

    async def search_text(
        self, access: Access, email_ids: Sequence[int]
    ) -> dict[int, tuple[str, str]]:
        """Return (headers, body) as extracted at arrival, by email id."""
        check(access)
        found: dict[int, tuple[str, str]] = {}
        for start in range(0, len(email_ids), CHUNK):
            some = email_ids[start : start + CHUNK]
            found |= await self._store.read(access, texts.plain, some)
        return found

    # --- content ------------------------------------------------------------------

    async def read(
        self, access: Access, email_id: int, start: int = 0, end: int | None = None
    ) -> bytes:
        """Return octets [start:end] of a message.  NOT_FOUND, UNAVAILABLE."""
        blob = await self._blob_of(access, email_id)
        return await self._blobs.read(blob, start, end)

    async def stream(
        self, access: Access, email_id: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield octets [start:end] of a message in chunks.  NOT_FOUND, UNAVAILABLE."""
        blob = await self._blob_of(access, email_id)
        async for chunk in self._blobs.stream(blob, start, end):
            yield chunk

    async def _blob_of(self, access: Access, email_id: int) -> BlobRef:
        row = (await self.rows(access, (email_id,), Column.BASIC)).get(email_id)
        if row is None or row.blob is None:
            raise MailError(Kind.NOT_FOUND, "no such email")
        return row.blob

    async def find_blob(self, access: Access, blob_hash: bytes) -> BlobRef:
        """Return a blob of an email or a live upload of the account.  NOT_FOUND."""
        check(access)
        return await self._store.read(access, blobs.find_blob, blob_hash)

    async def upload(
        self, access: Access, data: bytes | tuple[BinaryIO, int], media_type: str
    ) -> BlobRef:
        """Store an upload: bytes, or (file, size); durable on return.

        It lives for 24 hours, or as long as an email has it.  The media type is
        the client's claim and is not kept (RFC 8620 section 6.1).  LIMIT.
        """
        check(access)
        del media_type
        await self._make_room(access, len(data) if isinstance(data, bytes) else data[1])
        if isinstance(data, bytes):
            blob = await self._blobs.put(data)
        else:
            blob = await self._blobs.put_file(*data)
        return await self._store.write(access, blobs.add_upload, (blob, UPLOAD_SECONDS))

    async def _make_room(self, access: Access, octets: int) -> None:
        """Raise LIMIT before anything is written; what was imported counts no more."""
        if await self._store.read(access, blobs.has_room, octets):
            return
        await self._store.write(access, blobs.forget_kept, None)
        if not await self._store.read(access, blobs.has_room, octets):
            raise MailError(Kind.LIMIT, "too many uploads")

    async def read_blob(
        self, blob: BlobRef, start: int = 0, end: int | None = None
    ) -> bytes:
        """Return octets [start:end] of a blob that ``find_blob`` returned."""
        return await self._blobs.read(blob, start, end)

    def stream_blob(
        self, blob: BlobRef, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield octets [start:end] of a blob that ``find_blob`` returned."""
        return self._blobs.stream(blob, start, end)

    # --- writing ------------------------------------------------------------------

    async def store_flags(self, access: Access, args: StoreFlags) -> StoreResult:
        """STORE by uid (RFC 9051 section 6.4.6); NOT_FOUND, INVALID, LIMIT.

        A keyword change shows in all mailboxes of the email.
        """
        check(access)
        if len(args.uids) <= FEW:
            result = await self._store.write(access, flags.store_flags, args)
            self._changes.announce(access.account, result.modseq)
            return result
        parts = []
        for start in range(0, len(args.uids), STORE_CHUNK):
            some = StoreFlags(
                args.mailbox_id,
                args.uids[start : start + STORE_CHUNK],
                args.change,
                args.flags,
                args.deleted,
                args.unchanged_since,
            )
            part = await self._store.write(access, flags.store_many, some)
            self._changes.announce(access.account, part.modseq)
            parts.append(part)
        return StoreResult(
            parts[-1].modseq,
            tuple(row for part in parts for row in part.changed),
            tuple(modseq for part in parts for modseq in part.previous),
            tuple(uid for part in parts for uid in part.modified),
        )

    async def copy(
        self,
        access: Access,
        source_mailbox: int,
        uids: Sequence[int],
        target_mailbox: int,
    ) -> CopyResult:
        """COPY by uid (RFC 9051 section 6.4.7): all or nothing.

        NOT_FOUND (mailbox), OVER_QUOTA.
        """
        check(access)
        args = (source_mailbox, uids, target_mailbox)
        if len(uids) <= FEW:
            return await self._placed(access, copies.copy, args)
        work = copy_in_chunks(self._store, self._changes, access, args)
        return await asyncio.shield(asyncio.ensure_future(work))

    async def move(
        self,
        access: Access,
        source_mailbox: int,
        uids: Sequence[int],
        target_mailbox: int,
    ) -> CopyResult:
        """MOVE by uid (RFC 6851); the emails keep their ids.  NOT_FOUND (mailbox).

        Thousands move in pieces: a failure then leaves the rest where it was, as
        section 3.3 allows.
        """
        check(access)
        if len(uids) <= FEW:
            args = (source_mailbox, uids, target_mailbox)
            return await self._placed(access, copies.move, args)
        parts = []
        for start in range(0, len(uids), STORE_CHUNK):
            some = uids[start : start + STORE_CHUNK]
            args = (source_mailbox, some, target_mailbox)
            parts.append(await self._placed(access, copies.move_many, args))
        return joined(parts)

    async def _placed(
        self,
        access: Access,
        unit: Callable[..., CopyResult],
        args: tuple[int, Sequence[int], int],
    ) -> CopyResult:
        result = await self._store.write(access, unit, args)
        self._changes.announce(access.account, result.modseq)
        return result

    async def expunge(
        self, access: Access, mailbox_id: int, uids: Sequence[int] | None
    ) -> tuple[tuple[int, ...], int]:
        """Remove what is ``\\Deleted``, of these uids or of all: (uids, modseq)."""
        check(access)
        marked: tuple[int, ...] = ()
        if await self._store.read(access, copies.has_deleted, mailbox_id):
            marked = await self._store.read(access, copies.deleted_uids, mailbox_id)
        if uids is not None:
            named = set(uids)
            marked = tuple(uid for uid in marked if uid in named)
        removed: list[int] = []
        modseq = await self._store.read(access, messages.reached, None)
        for start in range(0, len(marked), STORE_CHUNK):
            some = marked[start : start + STORE_CHUNK]
            unit = copies.expunge if len(some) <= FEW else copies.expunge_many
            gone, modseq = await self._store.write(access, unit, (mailbox_id, some))
            self._changes.announce(access.account, modseq)
            removed += gone
        return tuple(removed), modseq

    async def update(
        self,
        access: Access,
        patches: Sequence[EmailPatch],
        *,
        if_modseq: int | None = None,
    ) -> BatchResult:
        """Email/set update: STATE_MISMATCH; other errors per email."""
        check(access)
        unit = flags.update if len(patches) <= FEW else flags.update_many
        return await self._batch(access, unit, (patches, if_modseq))

    async def destroy(
        self,
        access: Access,
        email_ids: Sequence[int],
        *,
        if_modseq: int | None = None,
    ) -> BatchResult:
        """Email/set destroy: STATE_MISMATCH; NOT_FOUND per email."""
        check(access)
        unit = flags.destroy if len(email_ids) <= FEW else flags.destroy_many
        return await self._batch(access, unit, (email_ids, if_modseq))

    async def _batch(
        self, access: Access, unit: Callable[..., BatchResult], args: object
    ) -> BatchResult:
        result = await self._store.write(access, unit, args)
        self._changes.announce(access.account, result.modseq)
        return result
