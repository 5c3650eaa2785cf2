"""Sequence sets as ranges (RFC 9051 section 9, ``sequence-set``): never expanded.

``1:*`` over a mailbox of a million messages stays one range; what a set selects is
found by bisecting the arrays of the view.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

STAR = 1 << 32
"""Stands for ``*``: the largest number in use, above every number (RFC 9051)."""
MAX_NUMBER = STAR - 1
Range = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceSet:
    """Ranges as written (either bound may be ``STAR``), or ``saved`` for ``$``."""

    ranges: tuple[Range, ...]
    saved: bool = False

    def resolve(self, largest: int) -> list[Range]:
        """Return sorted, disjoint ranges with ``*`` replaced by ``largest``.

        ``559:*`` includes ``largest`` even when it is below 559.  With ``largest``
        0 (nothing there) the star selects nothing.
        """
        return normalise(
            (largest if low == STAR else low, largest if high == STAR else high)
            for low, high in self.ranges
        )


def normalise(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges sorted, merged and without zero."""
    merged: list[Range] = []
    for low, high in sorted((min(r), max(r)) for r in ranges):
        if not high:
            continue
        if merged and low <= merged[-1][1] + 1:
            if high > merged[-1][1]:
                merged[-1] = (merged[-1][0], high)
        else:
            merged.append((max(low, 1), high))
    return merged


def parse(text: bytes) -> SequenceSet:
    """Parse a sequence-set; WireError when it is none."""
    if text == b"$":
        return SequenceSet((), saved=True)
    return SequenceSet(tuple(_parse_range(piece) for piece in text.split(b",")))


def _parse_range(piece: bytes) -> Range:
    low, colon, high = piece.partition(b":")
    first = _parse_number(low)
    return (first, _parse_number(high)) if colon else (first, first)


def _parse_number(text: bytes) -> int:
    """``seq-number``: nz-number (1 to 2^32-1) or ``*``."""
    if text == b"*":
        return STAR
    if not text.isdigit() or len(text) > 10 or text[0] == 48:
        raise WireError("invalid sequence set")
    number = int(text)
    if number > MAX_NUMBER:
        raise WireError("number too large in sequence set")
    return number


def _encode_range(item: Range) -> bytes:
    low, high = item
    return b"%d" % low if low == high else b"%d:%d" % item


def compress(numbers: Iterable[int]) -> Iterator[Range]:
    """Yield the ranges that ascending numbers form."""
    iterator = iter(numbers)
    first = next(iterator, None)
    if first is None:
        return
    last = first
    for number in iterator:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def encode(numbers: Iterable[int]) -> bytes:
    """Return ascending numbers as a sequence set; ``b""`` when there are none."""
    return encode_ranges(compress(numbers))


def encode_ranges(ranges: Iterable[Range]) -> bytes:
    """Return ranges as a sequence set."""
    return b",".join(map(_encode_range, ranges))


def encode_pairs(numbers: Sequence[int], others: Sequence[int]) -> tuple[bytes, bytes]:
    """Return two parallel sequences as sets of the same cardinality and order.

    COPYUID (RFC 4315 section 3): a client expands both, so ranges are cut wherever
    either side is not consecutive.
    """
    runs: list[list[int]] = []
    for left, right in zip(numbers, others, strict=True):
        if runs and left == runs[-1][1] + 1 and right == runs[-1][3] + 1:
            runs[-1][1], runs[-1][3] = left, right
        else:
            runs.append([left, left, right, right])
    return (
        b",".join(_encode_range((run[0], run[1])) for run in runs),
        b",".join(_encode_range((run[2], run[3])) for run in runs),
    )
