r"""Answering FETCH: pages of messages, columns of values, bodies one by one.

``\Seen`` is set before the bodies of a page are sent.  A message that cannot be read
is left out, the others are answered, and the tagged reply says that it was.
"""

from __future__ import annotations

import dataclasses
from array import array
from bisect import bisect_left
from operator import itemgetter
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from protocols.imap import bodies, columns
from protocols.imap.extension import Page
from protocols.imap.sections import Source
from protocols.imap.values import CHUNK, load
from storage.model import SEEN, FlagChange, Flags, StoreFlags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocols.imap.extension import Attribute, Context
    from protocols.imap.sections import Section
    from protocols.imap.view import Batch
    from protocols.imap.wire.sequence import Range

PARSED = 100  # messages of a page whose part tables are parsed
UNREADABLE = 20  # messages: with more of them the store is down, not a message lost
LINES = 4000  # messages of a page that reads arrays only


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What FETCH asks of each message."""

    attributes: tuple[Attribute, ...]
    sections: tuple[Section, ...] = ()
    changed_since: int = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """Everything that must be read from the store."""
        wanted = [field for a in self.attributes for field in a.fields]
        wanted += [field for s in self.sections for field in s.source_fields]
        return tuple(dict.fromkeys(wanted))

    @property
    def sets_seen(self) -> bool:
        r"""True when the messages become \Seen (RFC 9051 section 6.4.5)."""
        return any(not section.peek for section in self.sections)


class Fetcher:
    """One FETCH command at work."""

    def __init__(self, context: Context, request: Request) -> None:
        self._context = context
        self._request = request
        self._fields = request.fields
        self._unreadable: list[MailError] = []

    @property
    def _page_size(self) -> int:
        """How many messages are answered between two looks at other work."""
        if not self._fields:
            return LINES
        return PARSED if "part_table" in self._fields else CHUNK

    async def run(self, ranges: Sequence[Range]) -> None:
        """Send a response for every message in ranges of sequence numbers.

        UNAVAILABLE at the end if some could not be read.
        """
        size = self._page_size
        for low, high in _joined(ranges, size):
            for first in range(low, high + 1, size):
                last = min(first + size - 1, high)
                await self._page(self._batch(ranges, first, last))
        if self._unreadable:
            raise self._unreadable[0]

    def _batch(self, ranges: Sequence[Range], first: int, last: int) -> Batch:
        """Return the messages of a span that the ranges name."""
        batch = self._context.mailbox.batch(first, last)
        wanted = _within(ranges, first, last)
        if wanted == [(first, last)]:
            return batch
        named = {n for low, high in wanted for n in range(low, high + 1)}
        return batch.pick(i for i, seq in enumerate(batch.seqs) if seq in named)

    async def _page(self, batch: Batch) -> None:
        since = self._request.changed_since
        if since:
            batch = batch.pick([i for i, m in enumerate(batch.modseqs) if m > since])
        request = self._request
        if batch.uids and request.sets_seen and not self._context.mailbox.read_only:
            batch, newly = await self._set_seen(batch)
            if newly:
                await self._with_flags(batch, newly)
                return
        await self._answer(batch, request.attributes)

    async def _with_flags(self, batch: Batch, newly: set[int]) -> None:
        r"""Tell the flags of those that just became \Seen (RFC 9051 section 6.4.5)."""
        given, modes = self._request.attributes, self._context.modes
        wanted = [columns.FLAGS]
        if modes.condstore:  # RFC 7162 section 3.1: with every change of flags
            wanted.append(columns.MODSEQ)
        if modes.qresync:
            wanted.append(columns.UID)
        told = given + tuple(item for item in wanted if item not in given)
        for start, end in _runs([uid in newly for uid in batch.uids]):
            attributes = told if batch.uids[start] in newly else given
            await self._answer(batch.pick(range(start, end)), attributes)

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
        fresh = fresh.pick([i for i, uid in enumerate(fresh.uids) if uid in here])
        return fresh, set(unseen)

    async def _answer(self, batch: Batch, attributes: tuple[Attribute, ...]) -> None:
        if not batch.uids:
            return
        context = self._context
        page = Page(batch, {}, context.mailbox.view)
        if self._fields:
            batch, values = await load(context, batch, self._fields)
            page = Page(batch, values, context.mailbox.view)
        if columns.FLAGS in attributes:
            context.mailbox.sent(batch)
        if self._request.sections:
            await self._bodies(page, attributes)
        else:
            context.send(b"".join(columns.lines(page, attributes, end=b")\r\n")))
            await context.channel.drain()

    async def _bodies(self, page: Page, attributes: tuple[Attribute, ...]) -> None:
        context, wanted = self._context, self._request.sections
        heads = columns.lines(page, attributes, end=b" " if attributes else b"")
        for head, source in zip(heads, _sources(page), strict=True):
            try:
                pieces = [
                    await bodies.prepare(context, each, source) for each in wanted
                ]
            except MailError as error:
                self._leave_out(error)
                continue
            for section, piece in zip(wanted, pieces, strict=True):
                context.send(head + section.label + b" ")
                await bodies.send(context, piece, source)
                head = b" "  # noqa: PLW2901 - only the first follows the head
            context.send(b")\r\n")
            await context.channel.drain()

    def _leave_out(self, error: MailError) -> None:
        self._unreadable.append(error)
        if error.kind is not Kind.UNAVAILABLE or len(self._unreadable) > UNREADABLE:
            raise error


def _sources(page: Page) -> list[Source]:
    values, none = page.values, [b""] * len(page.batch.uids)
    return list(
        map(
            Source,
            values["blob"],
            values["size"],
            values["header_size"],
            values.get("part_table", none),
        )
    )


def _within(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    """Return what of sorted ranges lies in a span."""
    found = []
    for low, high in ranges[bisect_left(ranges, first, key=itemgetter(1)) :]:
        if low > last:
            break
        found.append((max(low, first), min(high, last)))
    return found


def _joined(ranges: Sequence[Range], size: int) -> list[Range]:
    """Join ranges that lie close together, so that sparse sets are read in pages."""
    joined: list[Range] = []
    for low, high in ranges:
        if joined and low - joined[-1][1] <= size and high - joined[-1][0] < size:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined


def _runs(values: Sequence[bool]) -> list[Range]:
    """Return the half-open runs of equal values."""
    if not values:
        return []
    cuts = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    return list(zip([0, *cuts], [*cuts, len(values)], strict=True))
