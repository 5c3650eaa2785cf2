r"""The search keys of RFC 9051 section 6.4.4 (and NEW, OLD, RECENT of RFC 3501)."""

from __future__ import annotations

import operator
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
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from protocols.imap.extension import Finder, Positions
    from protocols.imap.wire.cursor import Cursor
    from protocols.imap.wire.sequence import SequenceSet

    Match = Callable[[Finder, Positions, Any], Awaitable[Positions]]

VALUES, TEXTS = 1, 2  # what keys cost
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


# --- stored values --------------------------------------------------------------


def by_value(field: str, test: Callable[[Any, int, int], bool]) -> Match:
    """Return a match for keys that test a field: ``test(value, argument, now)``."""

    async def match(part: Finder, positions: Positions, argument: int) -> Positions:
        pairs = await part.values(positions, field)
        return [i for i, value in pairs if test(value, argument, part.now)]

    return match


def _number(args: Cursor, _: str) -> int:
    return args.number()


def parse_day(args: Cursor, _: str) -> int:
    """``date``: days since the epoch."""
    return args.date()


def by_day(field: str, compare: Callable[[int, int], bool]) -> Match:
    """Return a match for keys that compare the UTC day of a time with a day."""
    return by_value(field, lambda time, day, _: compare(time // dates.DAY, day))


def _by_sent_day(compare: Callable[[int, int], bool]) -> Match:
    """Compare the day that the Date field names, whatever its zone.

    RFC 9051 section 6.4.4.  The field stands first in ENVELOPE; where it cannot be
    read, no date matches.
    """

    def test(envelope: bytes, day: int, _: int) -> bool:
        date = parse_date(envelope[2:100].partition(b'"')[0])
        if date is None:
            return False
        return compare((date.epoch + date.offset * 60) // dates.DAY, day)

    return by_value("envelope", test)


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
    SearchKey("BEFORE", by_day("received_at", operator.lt), parse_day, VALUES),
    SearchKey("ON", by_day("received_at", operator.eq), parse_day, VALUES),
    SearchKey("SINCE", by_day("received_at", operator.ge), parse_day, VALUES),
    SearchKey("LARGER", by_value("size", lambda n, k, _: n > k), _number, VALUES),
    SearchKey("SMALLER", by_value("size", lambda n, k, _: n < k), _number, VALUES),
    SearchKey("SENTBEFORE", _by_sent_day(operator.lt), parse_day, VALUES),
    SearchKey("SENTON", _by_sent_day(operator.eq), parse_day, VALUES),
    SearchKey("SENTSINCE", _by_sent_day(operator.ge), parse_day, VALUES),
    SearchKey("HEADER", _in_header, _header, TEXTS),
    *(
        SearchKey(field.upper(), _contains(field), _text, TEXTS)
        for field in ("bcc", "body", "cc", "from", "subject", "text", "to")
    ),
)
