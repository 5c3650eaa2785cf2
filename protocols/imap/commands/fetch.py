"""FETCH and UID FETCH (RFC 9051 section 6.4.5), with CHANGEDSINCE and VANISHED
(RFC 7162 sections 3.1.4.1 and 3.2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap import columns, sections
from protocols.imap.conn import SELECTED
from protocols.imap.extension import Command, Context
from protocols.imap.fetcher import Fetcher, Request
from protocols.imap.vanished import vanished_line
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from protocols.imap.extension import Attribute
    from protocols.imap.sections import Section
    from protocols.imap.wire.cursor import Cursor
    from protocols.imap.wire.sequence import SequenceSet

MAX_ITEMS = 50  # sections: each may be held in memory


async def _fetch(context: Context, args: Cursor) -> bytes | None:
    return await _run(context, args, uid=False)


async def _uid_fetch(context: Context, args: Cursor) -> bytes | None:
    return await _run(context, args, uid=True)


async def _run(context: Context, args: Cursor, *, uid: bool) -> bytes | None:
    args.space()
    wanted = args.sequence_set()
    args.space()
    items = _Items(context, args)
    items.read()
    since, vanished = _modifiers(args) if args.take(b" ") else (None, False)
    args.end()
    if vanished and (since is None or not uid or not context.modes.qresync):
        raise WireError("VANISHED needs UID FETCH, CHANGEDSINCE and QRESYNC")
    request = items.request(uid=uid, since=since)
    if columns.MODSEQ in request.attributes:
        context.enable_condstore()
    selected = context.mailbox
    ranges = selected.resolve(wanted, uid=uid)
    lost = not uid and selected.lost(ranges)
    if vanished:
        await _send_vanished(context, wanted, request.changed_since)
    await Fetcher(context, request).run(ranges)
    return b"[EXPUNGEISSUED] Some messages are gone" if lost else None


class _Items:
    """Reads the items of one command."""

    def __init__(self, context: Context, args: Cursor) -> None:
        self._known = context.registry.attributes
        self._args = args
        self.attributes: dict[Attribute, None] = {}
        self.sections: list[Section] = []

    def read(self) -> None:
        """Read a macro, one item, or a list of items."""
        if self._args.next_is(b"("):
            self._args.group(self._item)
            if len(self.sections) > MAX_ITEMS:
                raise WireError("too many items")
        else:
            self._item(macros=True)

    def _item(self, *, macros: bool = False) -> None:
        name = self._args.word()
        if macros and name in columns.MACROS:
            self.attributes.update(dict.fromkeys(columns.MACROS[name]))
        elif name in sections.OLD_ITEMS:
            self.sections.append(sections.OLD_ITEMS[name])
        elif name in sections.BODY_ITEMS and self._args.next_is(b"["):
            self.sections.append(sections.parse(name, self._args))
        elif (attribute := self._known.get(name)) is not None:
            if attribute.parse is not None:
                attribute.parse(self._args)
            self.attributes[attribute] = None
        else:
            raise WireError("unknown FETCH item")

    def request(self, *, uid: bool, since: int | None) -> Request:
        """Return what was asked for; UID FETCH and CHANGEDSINCE add items."""
        wanted = self.attributes
        if uid:
            wanted = {columns.UID: None} | wanted
        if since is not None:
            wanted[columns.MODSEQ] = None
        return Request(tuple(wanted), tuple(dict.fromkeys(self.sections)), since or 0)


def _modifiers(args: Cursor) -> tuple[int | None, bool]:
    since: int | None = None
    vanished = False

    def modifier() -> None:
        nonlocal since, vanished
        name = args.word()
        if name == "CHANGEDSINCE":
            args.space()
            since = args.number()
        elif name == "VANISHED":
            vanished = True
        else:
            raise WireError("unknown FETCH modifier")

    args.group(modifier)
    return since, vanished


async def _send_vanished(context: Context, wanted: SequenceSet, since: int) -> None:
    selected = context.mailbox
    known = wanted.resolve(max(selected.view.uidnext - 1, 0))
    line = await vanished_line(context, selected, known, since)
    if line:
        context.send(line)


FETCH = Command("FETCH", SELECTED, _fetch, breaks_seqs=False)
UID_FETCH = Command("UID FETCH", SELECTED, _uid_fetch)
