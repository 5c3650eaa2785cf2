r"""SELECT and EXAMINE (RFC 9051 sections 6.3.2 and 6.3.3).

With the parameters CONDSTORE and QRESYNC (RFC 7162 sections 3.1.8 and 3.2.5).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from protocols.imap import columns, flags, listing
from protocols.imap.conn import AUTHENTICATED, Event
from protocols.imap.extension import Command, Context
from protocols.imap.fetcher import Fetcher, Request
from protocols.imap.replies import Refused
from protocols.imap.vanished import vanished_line
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from protocols.imap.view import Selected
    from protocols.imap.wire.cursor import Cursor
    from protocols.imap.wire.sequence import Range, SequenceSet
    from storage.model import Mailbox, MailboxList


@dataclasses.dataclass(frozen=True, slots=True)
class _Resync:
    """What a client kept of the mailbox (RFC 7162 section 3.2.5)."""

    uidvalidity: int
    modseq: int
    known: SequenceSet | None


async def _select(context: Context, args: Cursor) -> bytes:
    return await _run(context, args, read_only=False)


async def _examine(context: Context, args: Cursor) -> bytes:
    return await _run(context, args, read_only=True)


async def _run(context: Context, args: Cursor, *, read_only: bool) -> bytes:
    args.space()
    path = args.mailbox(utf8=context.modes.utf8)
    condstore, resync = _parameters(context, args) if args.take(b" ") else (False, None)
    args.end()
    if context.selected is not None:
        context.unselect()
        context.send(b"* OK [CLOSED] Previous mailbox closed\r\n")
    listed = await context.mailboxes()
    mailbox = next((m for m in listed.mailboxes if m.path == path), None)
    if mailbox is None:
        raise Refused("NONEXISTENT", "no such mailbox")
    selected = await _open(context, mailbox, read_only=read_only)
    if condstore:
        context.modes.enable("CONDSTORE")
    _describe(context, selected, mailbox, listed)
    if resync is not None and resync.uidvalidity == selected.view.uidvalidity:
        await _resynchronise(context, selected, resync)
    if read_only:
        return b"[READ-ONLY] EXAMINE completed"
    return b"[READ-WRITE] SELECT completed"


async def _open(context: Context, mailbox: Mailbox, *, read_only: bool) -> Selected:
    try:
        selected = await context.views.select(
            context.access, mailbox, read_only=read_only
        )
    except MailError as error:
        if error.kind is Kind.NOT_FOUND:
            raise Refused("NONEXISTENT", "no such mailbox") from error
        raise
    context.selected = selected
    context.advance(Event.SELECT)
    return selected


def _parameters(context: Context, args: Cursor) -> tuple[bool, _Resync | None]:
    condstore, resync = False, None

    def parameter() -> None:
        nonlocal condstore, resync
        name = args.word()
        if name == "CONDSTORE":
            condstore = True
        elif name == "QRESYNC" and context.modes.qresync:
            args.space()
            resync = _resync(args)
        else:
            raise WireError("unknown SELECT parameter, or not enabled")

    args.group(parameter)
    return condstore, resync


def _resync(args: Cursor) -> _Resync:
    """``(uidvalidity modseq [known-uids] [(known-sequence-set known-uid-set)])``."""
    args.enter()
    uidvalidity = args.nz_number()
    args.space()
    modseq = args.nz_number()
    known = None
    if args.take(b" "):
        if not args.next_is(b"("):
            known = args.sequence_set()
            if args.take(b" "):
                _skip_match(args)
        else:
            _skip_match(args)
    args.leave()
    return _Resync(uidvalidity, modseq, known)


def _skip_match(args: Cursor) -> None:
    """The sequence match data only saves octets (RFC 7162 section 3.2.5.2)."""
    args.enter()
    args.sequence_set()
    args.space()
    args.sequence_set()
    args.leave()


def _describe(
    context: Context, selected: Selected, mailbox: Mailbox, listed: MailboxList
) -> None:
    view, rev2 = selected.view, context.modes.rev2
    words = " ".join([flags.DEFINED, *view.keywords]).encode("ascii", "replace")
    permanent = b"" if selected.read_only else words + b" \\*"
    lines = [
        b"* FLAGS (%b)" % words,
        b"* OK [PERMANENTFLAGS (%b)] Flags permitted" % permanent,
        b"* %d EXISTS" % selected.count,
    ]
    if not rev2:
        lines.append(b"* 0 RECENT")
        if unseen := view.first_unseen():
            lines.append(b"* OK [UNSEEN %d] First unseen" % unseen)
    lines += [
        b"* OK [UIDVALIDITY %d] UIDs valid" % view.uidvalidity,
        b"* OK [UIDNEXT %d] Predicted next UID" % view.uidnext,
        b"* OK [HIGHESTMODSEQ %d] Highest" % selected.told,
        b"* OK [MAILBOXID (m%d)] Ok" % mailbox.mailbox_id,
    ]
    context.send(b"\r\n".join(lines) + b"\r\n")
    if rev2:
        have_children = listing.parents(listed.mailboxes)
        found = listing.attributes(mailbox, have_children, subscribed=True)
        context.send(listing.line(context, mailbox.path, found))


async def _resynchronise(context: Context, selected: Selected, resync: _Resync) -> None:
    """Tell what happened since the client was here last."""
    highest = max(selected.view.uidnext - 1, 0)
    known: list[Range] = [(1, highest)] if highest else []
    if resync.known is not None:
        known = resync.known.resolve(highest)
    context.send(await vanished_line(context, selected, known, resync.modseq))
    request = Request(
        (columns.UID, columns.FLAGS, columns.MODSEQ), changed_since=resync.modseq
    )
    await Fetcher(context, request).run(selected.by_uid(known))


SELECT = Command("SELECT", AUTHENTICATED, _select, news=False)
EXAMINE = Command("EXAMINE", AUTHENTICATED, _examine, news=False)
