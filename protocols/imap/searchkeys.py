r"""The search keys of RFC 9051 section 6.4.4 (and NEW, OLD, RECENT of RFC 3501)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

from mailserverd.mail.dates import parse_date
from protocols.imap.extension import SearchKey
from protocols.imap.wire import dates
from protocols.imap.wire.errors import WireError
from storage.model import (
    ANSWERED,
    DELETED_BIT,
    DRAFT,
    FLAGGED,
    KEYWORD_SHIFT,
    SEEN,
    SYSTEM_KEYWORDS,
    Column,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from protocols.imap.extension import Finder, Positions
    from protocols.imap.wire.cursor import Cursor
    from protocols.imap.wire.sequence import SequenceSet
    from storage.model import EmailRow

    Match = Callable[[Finder, Positions, Any], Awaitable[Positions]]

ARRAYS, ROWS, TEXTS = 0, 1, 2
MAX_NEEDLE = 4096


# --- flags ----------------------------------------------------------------------


def _has(bit: int) -> Match:
    async def match(part: Finder, positions: Positions, _: object) -> Positions:
        flags = part.batch.flags
        return [i for i in positions if flags[i] & bit]

    return match


def _lacks(bit: int) -> Match:
    async def match(part: Finder, positions: Positions, _: object) -> Positions:
        flags = part.batch.flags
        return [i for i in positions if not flags[i] & bit]

    return match


async def _every(_: Finder, positions: Positions, __: object) -> Positions:
    return positions


async def _none(_: Finder, __: Positions, ___: object) -> Positions:
    return ()


def _keyword(args: Cursor, _: str) -> str:
    return args.flag().lower()


async def _with_keyword(part: Finder, positions: Positions, word: str) -> Positions:
    flags = part.batch.flags
    bit = SYSTEM_KEYWORDS.get(word)
    if bit:
        return [i for i in positions if flags[i] & bit]
    sets = part.view.keyword_sets
    numbers = {number for number, words in enumerate(sets, 1) if word in words}
    return [i for i in positions if flags[i] >> KEYWORD_SHIFT in numbers]


async def _without_keyword(part: Finder, positions: Positions, word: str) -> Positions:
    hit = set(await _with_keyword(part, positions, word))
    return [i for i in positions if i not in hit]


# --- numbers --------------------------------------------------------------------


def _set(args: Cursor, _: str) -> SequenceSet:
    return args.sequence_set()


async def _by_number(
    part: Finder, positions: Positions, wanted: SequenceSet
) -> Positions:
    return _within(part, positions, wanted, uid=False)


async def _by_uid(part: Finder, positions: Positions, wanted: SequenceSet) -> Positions:
    return _within(part, positions, wanted, uid=True)


def _within(
    part: Finder, positions: Positions, wanted: SequenceSet, *, uid: bool
) -> Positions:
    """Cut positions with ranges of sequence numbers: both ascend."""
    seqs = part.batch.seqs
    found: list[int] = []
    for low, high in part.numbered(wanted, uid=uid):
        first = bisect_left(positions, bisect_left(seqs, low))
        last = bisect_left(positions, bisect_right(seqs, high))
        found += positions[first:last]
    return found


# --- rows -----------------------------------------------------------------------


def by_row(
    test: Callable[[EmailRow, int, int], bool],
    columns: Column = Column.BASIC,
    *,
    saved: bool = False,
) -> Match:
    """Return a match for keys that test a row: ``test(row, argument, now)``."""

    async def match(part: Finder, positions: Positions, argument: int) -> Positions:
        rows = await part.rows(positions, columns, saved=saved)
        return [
            i
            for i, row in zip(positions, rows, strict=True)
            if row is not None and test(row, argument, part.now)
        ]

    return match


def _number(args: Cursor, _: str) -> int:
    return args.number()


def parse_day(args: Cursor, _: str) -> int:
    """``date``: days since the epoch."""
    return args.date()


def _day(row: EmailRow) -> int:
    return row.received_at // dates.DAY


def _sent_day(row: EmailRow) -> int:
    """The day that the Date field names, whatever its zone (RFC 9051 section 6.4.4).

    The field stands first in ENVELOPE.
    """
    head = row.envelope[2:100].partition(b'"')[0]
    date = parse_date(head) if row.envelope.startswith(b'("') else None
    if date is None:
        return -1 if row.sent_at is None else row.sent_at // dates.DAY
    return (date.epoch + date.offset * 60) // dates.DAY


# --- texts ----------------------------------------------------------------------


def _text(args: Cursor, charset: str) -> str:
    value = args.astring()
    if len(value) > MAX_NEEDLE:
        raise WireError("search text too long")
    try:
        return value.decode(charset)
    except UnicodeDecodeError:
        raise WireError("search text is not in the charset it claims") from None


def _header(args: Cursor, charset: str) -> tuple[str, str]:
    name = _text(args, "ascii").lower()
    if not name or any(c <= " " or c == ":" for c in name):
        raise WireError("invalid header field name")
    args.space()
    return name, _text(args, charset)


def _contains(field: str) -> Match:
    async def match(part: Finder, positions: Positions, needle: str) -> Positions:
        return await part.contains(positions, field, needle) if needle else positions

    return match


async def _in_header(
    part: Finder, positions: Positions, argument: tuple[str, str]
) -> Positions:
    return await part.contains(positions, f"header:{argument[0]}", argument[1])


_SENT_BEFORE = by_row(lambda r, d, _: -1 < _sent_day(r) < d, Column.ENVELOPE)
_SENT_ON = by_row(lambda r, d, _: _sent_day(r) == d, Column.ENVELOPE)
_SENT_SINCE = by_row(lambda r, d, _: _sent_day(r) >= d, Column.ENVELOPE)
_FLAGS = {
    "ANSWERED": ANSWERED,
    "DELETED": DELETED_BIT,
    "DRAFT": DRAFT,
    "FLAGGED": FLAGGED,
    "SEEN": SEEN,
}
KEYS = (
    SearchKey("ALL", _every),
    SearchKey("NEW", _none),  # RECENT UNSEEN, and nothing is recent
    SearchKey("OLD", _every),
    SearchKey("RECENT", _none),
    *(SearchKey(name, _has(bit)) for name, bit in _FLAGS.items()),
    *(SearchKey(f"UN{name}", _lacks(bit)) for name, bit in _FLAGS.items()),
    SearchKey("KEYWORD", _with_keyword, _keyword),
    SearchKey("UNKEYWORD", _without_keyword, _keyword),
    SearchKey("sequence-set", _by_number),
    SearchKey("UID", _by_uid, _set),
    SearchKey("BEFORE", by_row(lambda r, d, _: _day(r) < d), parse_day, ROWS),
    SearchKey("ON", by_row(lambda r, d, _: _day(r) == d), parse_day, ROWS),
    SearchKey("SINCE", by_row(lambda r, d, _: _day(r) >= d), parse_day, ROWS),
    SearchKey("LARGER", by_row(lambda r, n, _: r.size > n), _number, ROWS),
    SearchKey("SMALLER", by_row(lambda r, n, _: r.size < n), _number, ROWS),
    SearchKey("SENTBEFORE", _SENT_BEFORE, parse_day, ROWS),
    SearchKey("SENTON", _SENT_ON, parse_day, ROWS),
    SearchKey("SENTSINCE", _SENT_SINCE, parse_day, ROWS),
    SearchKey("HEADER", _in_header, _header, TEXTS),
    *(
        SearchKey(field.upper(), _contains(field), _text, TEXTS)
        for field in ("bcc", "body", "cc", "from", "subject", "text", "to")
    ),
)
