"""SEARCH and UID SEARCH (RFC 9051 section 6.4.4).

With RETURN (RFC 4731), SAVE (RFC 5182) and MODSEQ (RFC 7162 section 3.1.5).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from protocols.imap.conn import SELECTED
from protocols.imap.extension import Command, Context
from protocols.imap.replies import Refused
from protocols.imap.searching import Parser, search
from protocols.imap.wire import encode, sequence
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from protocols.imap.searching import Node
    from protocols.imap.wire.cursor import Cursor

CHARSETS = {"UTF-8": "utf-8", "US-ASCII": "ascii"}
OPTIONS = frozenset({"MIN", "MAX", "ALL", "COUNT", "SAVE"})


@dataclasses.dataclass(slots=True)
class _Request:
    options: frozenset[str] | None  # None: the plain SEARCH response
    node: Node
    uses_modseq: bool


@dataclasses.dataclass(slots=True)
class _Result:
    """Parallel columns of what was found, in mailbox order."""

    numbers: list[int]  # as they are told: uids or sequence numbers
    uids: list[int]
    modseqs: list[int]


async def _search(context: Context, args: Cursor) -> None:
    await _run(context, args, uid=False)


async def _uid_search(context: Context, args: Cursor) -> None:
    await _run(context, args, uid=True)


async def _run(context: Context, args: Cursor, *, uid: bool) -> None:
    request = _parse(context, args)
    if request.uses_modseq:
        context.enable_condstore()
    options = request.options
    saving = options is not None and "SAVE" in options
    await context.refresh()
    context.tell(expunge=uid)  # what arrived just now is found, too
    try:
        result = await _find(context, request, uid=uid)
    except MailError:
        if saving:  # RFC 5182 section 2.1: a search that fails saves nothing
            context.mailbox.saved = []
        raise
    if options is None and context.modes.rev2:
        options = frozenset({"ALL"})
    if options is None:
        _tell_plain(context, result)
        return
    if saving:
        context.mailbox.saved = _to_save(options, result.uids)
    _tell_extended(context, options, result, uid=uid)


async def _find(context: Context, request: _Request, *, uid: bool) -> _Result:
    result = _Result([], [], [])
    for batch, positions in await search(context, request.node):
        numbers = batch.uids if uid else batch.seqs
        result.numbers += [numbers[i] for i in positions]
        result.uids += [batch.uids[i] for i in positions]
        if request.uses_modseq:
            result.modseqs += [batch.modseqs[i] for i in positions]
    return result


def _parse(context: Context, args: Cursor) -> _Request:
    args.space()
    options = None
    if args.take_word("RETURN"):
        args.space()
        options = frozenset(args.group(args.word, empty=True)) or frozenset({"ALL"})
        args.space()
        if not options <= OPTIONS:
            raise WireError("unknown return option")
    charset = "utf-8"
    if args.take_word("CHARSET"):
        args.space()
        charset = _charset(args.astring())
        args.space()
    parser = Parser(context.registry.search_keys, args, charset)
    node = parser.program()
    return _Request(options, node, parser.uses_modseq)


def _charset(name: bytes) -> str:
    codec = CHARSETS.get(name.decode("ascii", "replace").upper())
    if codec is None:
        raise Refused(f"BADCHARSET ({' '.join(CHARSETS)})", "unknown charset")
    return codec


def _tell_plain(context: Context, result: _Result) -> None:
    """``* SEARCH 2 84`` (RFC 3501 section 7.2.5)."""
    line = b" ".join([b"* SEARCH", *(b"%d" % n for n in result.numbers)])
    if result.modseqs:
        line += b" (MODSEQ %d)" % max(result.modseqs)
    context.send(line + b"\r\n")


def _tell_extended(
    context: Context, options: frozenset[str], result: _Result, *, uid: bool
) -> None:
    """``* ESEARCH (TAG "a1") UID ALL 2,84`` (RFC 9051 section 7.3.4)."""
    if options == {"SAVE"}:
        return
    numbers, modseqs = result.numbers, result.modseqs
    line = b"* ESEARCH (TAG %b)" % encode.quoted(context.tag.encode("ascii"))
    if uid:
        line += b" UID"
    if "COUNT" in options:
        line += b" COUNT %d" % len(numbers)
    if numbers:
        if "MIN" in options:
            line += b" MIN %d" % numbers[0]
        if "MAX" in options:
            line += b" MAX %d" % numbers[-1]
        if "ALL" in options:
            line += b" ALL " + sequence.encode(numbers)
        if modseqs:
            line += b" MODSEQ %d" % _modseq(options, modseqs)
    context.send(line + b"\r\n")


def _modseq(options: frozenset[str], modseqs: list[int]) -> int:
    """Return the MODSEQ of what is told: RFC 4731 section 3.2."""
    if options & {"ALL", "COUNT"}:
        return max(modseqs)
    ends = {"MIN": modseqs[0], "MAX": modseqs[-1]}
    return max(ends[name] for name in ends if name in options)


def _to_save(options: frozenset[str], uids: list[int]) -> list[sequence.Range]:
    """Return what ``$`` becomes (RFC 5182 section 2.4)."""
    if uids and not options & {"ALL", "COUNT"} and options & {"MIN", "MAX"}:
        ends = {"MIN": uids[0], "MAX": uids[-1]}
        uids = sorted({ends[name] for name in ends if name in options})
    return list(sequence.compress(uids))


SEARCH = Command("SEARCH", SELECTED, _search, breaks_seqs=False)
UID_SEARCH = Command("UID SEARCH", SELECTED, _uid_search)
