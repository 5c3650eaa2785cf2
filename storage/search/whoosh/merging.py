"""Which segments of an index to merge: few enough to search, seldom enough to pay.

Flushes make many small segments.  Those of like size are merged when there are
``MERGE_FROM`` of them, so that a document is copied about once per doubling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.search.whoosh.schema import EmailWriter

MERGE_FROM = 8
MERGE_MOST = 50_000  # documents; a merge stays a matter of seconds
_SMALL = 256  # documents; segments up to this are alike


def mergeable(segments: list[Any]) -> list[Any]:
    """Return the segments that should become one: none, or what would be smaller."""
    chosen: list[Any] = []
    total = 0
    for segment in sorted(segments, key=lambda s: s.doc_count()):
        size = segment.doc_count()
        if size > max(total, _SMALL) or total + size > MERGE_MOST:
            break
        chosen.append(segment)
        total += size
    if len(chosen) >= MERGE_FROM:
        return chosen
    return [s for s in segments if s.deleted_count() * 2 > s.doc_count_all()]


def merge_tier(writer: EmailWriter, segments: list[Any]) -> list[Any]:
    """Merge what ``mergeable`` names into the writer; return the rest."""
    chosen = {id(segment) for segment in mergeable(segments)}
    rest = []
    for segment in segments:
        if id(segment) not in chosen:
            rest.append(segment)
        elif segment.doc_count():
            writer.add_segment(segment)
    return rest


def keep_all(_writer: Any, segments: list[Any]) -> list[Any]:
    """Merge nothing."""
    return segments
