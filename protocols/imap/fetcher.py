r"""Answering FETCH: pages of rows, columns of values, streamed bodies.

Items of one value per message are rendered a page at a time (``columns``).  Sections of
bodies are read as ranges of the stored message: small ones whole, large ones in chunks,
always with back-pressure.  ``\Seen`` is set before the body is sent, page by page.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from array import array
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from protocols.imap import columns, sections
from protocols.imap.extension import NO_COLUMNS, Page
from protocols.imap.replies import Refused
from protocols.imap.rows import CHUNK, load_rows
from storage.model import SEEN, Column, FlagChange, Flags, StoreFlags

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from protocols.imap.extension import Attribute, Context
    from protocols.imap.sections import Extent, Section
    from protocols.imap.view import Batch
    from protocols.imap.wire.sequence import Range
    from storage.model import EmailRow

ROWS = CHUNK  # messages of a page that reads rows
PARSED = 100  # messages of a page whose part tables are read
LINES = 4000  # messages of a page that reads arrays only
SMALL = 128 * 1024  # sections up to here are read at once


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What FETCH asks of each message."""

    attributes: tuple[Attribute, ...]
    sections: tuple[Section, ...] = ()
    changed_since: int = 0

    @property
    def columns(self) -> Column:
        """Everything that must be read of the rows."""
        wanted = [a.columns for a in self.attributes]
        wanted += [s.columns for s in self.sections]
        return functools.reduce(operator.or_, wanted, NO_COLUMNS)

    @property
    def sets_seen(self) -> bool:
        r"""True when the messages become \Seen (RFC 9051 section 6.4.5)."""
        return any(not section.peek for section in self.sections)

    @property
    def page_size(self) -> int:
        """How many messages are answered between two looks at other work."""
        if not self.columns:
            return LINES
        return PARSED if self.columns & Column.PARTS else ROWS


class Fetcher:
    """One FETCH command at work."""

    def __init__(self, context: Context, request: Request) -> None:
        self._context = context
        self._request = request
        self._columns = request.columns

    async def run(self, ranges: Sequence[Range]) -> None:
        """Send a response for every message in ranges of sequence numbers."""
        size = self._request.page_size
        for low, high in ranges:
            for first in range(low, high + 1, size):
                last = min(first + size - 1, high)
                await self._page(self._context.mailbox.batch(first, last))

    async def _page(self, batch: Batch) -> None:
        since = self._request.changed_since
        if since:
            changed = [i for i, m in enumerate(batch.modseqs) if m > since]
            if len(changed) < len(batch.uids):
                batch = batch.pick(changed)
        if not batch.uids:
            return
        request = self._request
        if request.sets_seen and not self._context.mailbox.read_only:
            batch, newly = await self._set_seen(batch)
            if newly and columns.FLAGS not in request.attributes:
                await self._with_flags(batch, newly)
                return
        await self._answer(batch, request.attributes)

    async def _with_flags(self, batch: Batch, newly: set[int]) -> None:
        r"""Tell the flags of those that just became \Seen (RFC 9051 section 6.4.5)."""
        attributes = self._request.attributes
        for start, end in _runs([uid in newly for uid in batch.uids]):
            more = (columns.FLAGS,) if batch.uids[start] in newly else ()
            await self._answer(batch.pick(range(start, end)), attributes + more)

    async def _set_seen(self, batch: Batch) -> tuple[Batch, set[int]]:
        r"""Set \Seen where it is missing; return the batch anew, and which."""
        context, selected = self._context, self._context.mailbox
        pairs = zip(batch.uids, batch.flags, strict=True)
        unseen = array("I", [uid for uid, flags in pairs if not flags & SEEN])
        if not unseen:
            return batch, set()
        await context.services.messages.store_flags(
            context.access,
            StoreFlags(selected.view.mailbox_id, unseen, FlagChange.ADD, Flags(SEEN)),
        )
        await context.refresh()
        fresh, here = selected.batch(batch.seqs[0], batch.seqs[-1]), set(batch.uids)
        if len(here) < len(fresh.uids) or not here.issuperset(fresh.uids):
            fresh = fresh.pick(i for i, uid in enumerate(fresh.uids) if uid in here)
        return fresh, set(unseen)

    async def _answer(self, batch: Batch, attributes: tuple[Attribute, ...]) -> None:
        if not batch.uids:
            return
        context, view = self._context, self._context.mailbox.view
        rows: Sequence[EmailRow] = ()
        if self._columns:
            batch, rows = await self._rows(batch)
            if not rows:
                return
        if columns.FLAGS in attributes:
            context.mailbox.sent(batch)
        page = Page(batch, rows, view)
        if self._request.sections:
            await self._bodies(page, attributes)
        else:
            context.send(b"".join(columns.lines(page, attributes, end=b")\r\n")))
            await context.channel.drain()

    async def _rows(self, batch: Batch) -> tuple[Batch, list[EmailRow]]:
        """Read the rows of a page; messages that are gone are left out."""
        saved = any(attribute.saved for attribute in self._request.attributes)
        rows = await load_rows(self._context, batch, self._columns, saved=saved)
        if all(rows):
            return batch, [row for row in rows if row]
        here = [i for i, row in enumerate(rows) if row]
        return batch.pick(here), [row for row in rows if row]

    # --- bodies -----------------------------------------------------------------

    async def _bodies(self, page: Page, attributes: tuple[Attribute, ...]) -> None:
        heads = columns.lines(page, attributes, end=b"")
        gap = b" " if attributes else b""
        for head, row in zip(heads, page.rows, strict=True):
            pieces = [await self._prepare(section, row) for section in self._wanted]
            self._context.send(head)
            separator = gap
            for section, piece in zip(self._wanted, pieces, strict=True):
                self._context.send(separator + section.label + b" ")
                await self._send(piece, row)
                separator = b" "
            self._context.send(b")\r\n")
            await self._context.channel.drain()

    @property
    def _wanted(self) -> tuple[Section, ...]:
        return self._request.sections

    async def _prepare(self, section: Section, row: EmailRow) -> bytes | Stream:
        """Return a complete value, or how to stream it; nothing is sent yet."""
        extent = sections.locate(section, row)
        if extent is None:
            return b"0" if section.size_only else b"NIL"
        if section.decode:
            return await self._decoded(section, extent, row)
        if section.fields:
            top = min(extent.end, extent.start + sections.MAX_HEADER)
            block = await self._read(row, extent.start, top)
            return _literal(_slice(sections.pick_fields(block, section), section))
        extent = sections.cut(extent, section.partial)
        if extent.end - extent.start <= SMALL:
            return _literal(await self._read(row, extent.start, extent.end))
        return Stream(extent, extent.end - extent.start)

    async def _decoded(
        self, section: Section, extent: Extent, row: EmailRow
    ) -> bytes | Stream:
        """BINARY: the octets behind the transfer encoding (RFC 3516 section 4)."""
        if not sections.decodable(extent.encoding):
            raise Refused("UNKNOWN-CTE", "cannot decode this part")
        if section.size_only:
            return b"%d" % await self._decoded_size(extent, row)
        if extent.encoding in sections.IDENTITY:
            extent = sections.cut(extent, section.partial)
            section = dataclasses.replace(section, partial=None)
        if extent.end - extent.start <= SMALL:
            raw = await self._read(row, extent.start, extent.end)
            data = sections.decode(raw, extent.encoding)
            return _literal8(_slice(data, section))
        size = await self._decoded_size(extent, row)
        first, count = section.partial or (0, size)
        first = min(first, size)
        return Stream(extent, min(count, size - first), prefix=b"~", skip=first)

    async def _decoded_size(self, extent: Extent, row: EmailRow) -> int:
        """Decode once to know the size: a literal announces it."""
        if extent.encoding in sections.IDENTITY:
            return extent.end - extent.start
        size = 0
        async for chunk in self._chunks(Stream(extent, 0), row):
            size += len(chunk)
        return size

    async def _read(self, row: EmailRow, start: int, end: int) -> bytes:
        if row.blob is None or start >= end:
            return b""
        data = await self._context.services.messages.read_blob(row.blob, start, end)
        if len(data) != end - start:
            raise MailError(Kind.UNAVAILABLE, "message is damaged")
        return data

    async def _send(self, piece: bytes | Stream, row: EmailRow) -> None:
        context = self._context
        if isinstance(piece, bytes):
            context.send(piece)
            return
        context.send(b"%b{%d}\r\n" % (piece.prefix, piece.size))
        try:
            left = await self._copy(piece, row)
        except MailError:
            context.channel.transport.abort()  # the size is announced already
            raise
        if left:
            context.channel.transport.abort()
            raise MailError(Kind.UNAVAILABLE, "message is damaged")

    async def _copy(self, piece: Stream, row: EmailRow) -> int:
        """Send the octets; return how many are missing."""
        left, skip = piece.size, piece.skip
        async for chunk in self._chunks(piece, row):
            data = chunk[skip : skip + left]
            skip = max(0, skip - len(chunk))
            if data:
                left -= len(data)
                self._context.send(data)
                await self._context.channel.drain()
            if not left:
                break
        return left

    async def _chunks(self, piece: Stream, row: EmailRow) -> AsyncIterator[bytes]:
        """Yield the octets of an extent, decoded if it says so, up to 256 KiB each."""
        if row.blob is None:
            return
        extent = piece.extent
        decoder = sections.decoder(extent.encoding)
        stream = self._context.services.messages.stream_blob(
            row.blob, extent.start, extent.end
        )
        async for chunk in stream:
            yield decoder.feed(chunk) if decoder else chunk
        if decoder:
            yield decoder.finish()


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """A literal that is read while it is sent: ``size`` octets from ``skip`` on."""

    extent: Extent
    size: int
    prefix: bytes = b""  # "~" for literal8
    skip: int = 0


def _slice(data: bytes, section: Section) -> bytes:
    if section.partial is None:
        return data
    first, count = section.partial
    return data[first : first + count]


def _literal(data: bytes) -> bytes:
    return b"{%d}\r\n%b" % (len(data), data)


def _literal8(data: bytes) -> bytes:
    """A literal8 only where NUL demands it: not every client knows it."""
    return b"~" + _literal(data) if b"\0" in data else _literal(data)


def _runs(values: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the half-open runs of equal values."""
    cuts = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    return list(zip([0, *cuts], [*cuts, len(values)], strict=True))
