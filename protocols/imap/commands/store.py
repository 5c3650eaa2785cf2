"""STORE and UID STORE (RFC 9051 section 6.4.6), with UNCHANGEDSINCE (RFC 7162
section 3.1.3)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from protocols.imap import columns, flags
from protocols.imap.conn import SELECTED
from protocols.imap.extension import Command, Context
from protocols.imap.fetcher import Fetcher, Request
from protocols.imap.replies import Refused
from protocols.imap.wire import sequence
from protocols.imap.wire.errors import WireError
from storage.model import FlagChange, StoreFlags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocols.imap.wire.cursor import Cursor
    from protocols.imap.wire.sequence import Range, SequenceSet
    from storage.model import StoreResult

CHANGES = {"": FlagChange.SET, "+": FlagChange.ADD, "-": FlagChange.REMOVE}


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    wanted: SequenceSet
    change: FlagChange
    silent: bool
    listed: flags.FlagList
    unchanged_since: int | None


async def _store(context: Context, args: Cursor) -> bytes | None:
    return await _run(context, args, uid=False)


async def _uid_store(context: Context, args: Cursor) -> bytes | None:
    return await _run(context, args, uid=True)


async def _run(context: Context, args: Cursor, *, uid: bool) -> bytes | None:
    request = _parse(args)
    selected = context.writable
    if request.unchanged_since is not None:
        context.enable_condstore()
    ranges = selected.resolve(request.wanted, uid=uid)
    if not uid and selected.lost(ranges):
        raise Refused("EXPUNGEISSUED", "some of these messages are gone")
    uids = selected.uids_of(ranges)
    if not uids:
        return None
    result = await context.services.messages.store_flags(
        context.access,
        StoreFlags(
            selected.view.mailbox_id,
            uids,
            request.change,
            request.listed.flags,
            request.listed.deleted,
            request.unchanged_since,
        ),
    )
    selected.quiet(result)
    await context.refresh()
    await _tell(context, request, ranges, result, uid=uid)
    return _modified(context, result, uid=uid) if result.modified else None


def _parse(args: Cursor) -> _Request:
    args.space()
    wanted = args.sequence_set()
    args.space()
    since = None
    if args.next_is(b"("):
        since = _unchanged_since(args)
        args.space()
    sign = "+" if args.take(b"+") else "-" if args.take(b"-") else ""
    item = args.word()
    if item not in {"FLAGS", "FLAGS.SILENT"}:
        raise WireError("unknown STORE item")
    args.space()
    names = flags.flag_list(args) if args.next_is(b"(") else _bare(args)
    args.end()
    listed = flags.parse(names)
    return _Request(wanted, CHANGES[sign], item.endswith("SILENT"), listed, since)


def _bare(args: Cursor) -> list[str]:
    """Flags without parentheses: ``flag *(SP flag)``."""
    names = [args.flag()]
    while args.take(b" "):
        names.append(args.flag())
    return names


def _unchanged_since(args: Cursor) -> int:
    args.enter()
    if args.word() != "UNCHANGEDSINCE":
        raise WireError("unknown STORE modifier")
    args.space()
    since = args.number()
    args.leave()
    return since


async def _tell(
    context: Context,
    request: _Request,
    ranges: Sequence[Range],
    result: StoreResult,
    *,
    uid: bool,
) -> None:
    """Send FETCH for what was stored; .SILENT leaves only MODSEQ (RFC 7162)."""
    if request.silent and not context.modes.condstore:
        return
    attributes = [columns.UID] if uid or context.modes.qresync else []
    if not request.silent:
        attributes.append(columns.FLAGS)
    if context.modes.condstore:
        attributes.append(columns.MODSEQ)
    if request.silent:
        ranges = _of_uids(context, {row[0] for row in result.changed})
    elif result.modified:
        uids = context.mailbox.uids_of(ranges)
        ranges = _of_uids(context, set(uids) - set(result.modified))
    await Fetcher(context, Request(tuple(attributes))).run(ranges)


def _of_uids(context: Context, uids: set[int]) -> list[Range]:
    return context.mailbox.by_uid(sequence.compress(sorted(uids)))


def _modified(context: Context, result: StoreResult, *, uid: bool) -> bytes:
    """Return the MODIFIED response code (RFC 7162 section 3.1.3)."""
    numbers = list(result.modified)
    if not uid:
        numbers = [n for n in map(context.mailbox.seq, numbers) if n]
    failed = sequence.encode(sorted(numbers))
    return b"[MODIFIED %b] Conditional STORE failed" % failed


STORE = Command("STORE", SELECTED, _store, breaks_seqs=False)
UID_STORE = Command("UID STORE", SELECTED, _uid_store)
