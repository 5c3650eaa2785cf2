"""Looking through a whole segment, wherever its engine keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.report import SegmentReport
from storage.segments import (
    RECORD_HEADER,
    Damage,
    Found,
    ReadAt,
    SegmentError,
    read_footer,
    read_record,
    scan,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage.model import BlobRef


def records(read_at: ReadAt, size: int, store: bytes) -> list[BlobRef]:
    """Return the refs of all records that a segment of ``size`` octets holds, damaged
    ones too: what is still referenced must not be collected.

    Without a footer those are missing whose very header is damaged.
    """
    try:
        return read_footer(read_at, size)[1]
    except SegmentError:
        items = scan(read_at, size, store)
        found = (_named(read_at, store, item) for item in items)
        return [item.ref for item in found if item]


def examine(
    read_at: ReadAt, size: int, store: bytes, segment: int, *, sealed: bool
) -> SegmentReport:
    """Read a whole segment and compare every checksum and hash."""
    damage: list[Damage] = []
    end = size
    listed: list[BlobRef] = []
    try:
        end, listed = read_footer(read_at, size)
    except SegmentError as e:
        if sealed:
            damage.append(Damage(size, size, f"footer: {e}"))
    count, met = 0, set()
    for item in scan(read_at, end, store, content=True):
        if isinstance(item, Found):
            count += 1
            met.add(item.offset)
        elif listed or item.end != end:  # a tail may be under way
            damage.append(item)
    damage += [
        Damage(ref.offset, ref.offset + RECORD_HEADER + ref.length, "listed")
        for ref in listed
        if ref.offset not in met and not _within(ref.offset, damage)
    ]
    return SegmentReport(segment, count, size, tuple(damage))


def _named(read_at: ReadAt, store: bytes, item: Found | Damage) -> Found | None:
    """Return a record whose header can be read, whatever its payload."""
    if isinstance(item, Found):
        return item
    try:
        return Found(item.offset, read_record(read_at, item.offset, store))
    except SegmentError:
        return None


def _within(offset: int, damage: Iterable[Damage]) -> bool:
    return any(d.offset <= offset < d.end for d in damage)
