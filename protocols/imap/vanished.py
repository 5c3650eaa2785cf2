"""VANISHED (EARLIER): which uids a client knew are gone (RFC 7162 section 3.2.10)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from protocols.imap.wire import sequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocols.imap.extension import Context
    from protocols.imap.view import Selected
    from protocols.imap.wire.sequence import Range


async def vanished_line(
    context: Context, selected: Selected, known: Sequence[Range], since: int
) -> bytes:
    """Return the response for uids among ``known`` that vanished since a modseq.

    When the change log does not reach back that far, all known uids that do not
    exist are named: more than needed, never less.
    """
    gone = await context.services.messages.vanished(
        context.access, selected.view.mailbox_id, since
    )
    if gone is None:
        ranges = _missing(selected.view.uids, known)
    else:
        here = _Ranges(known)
        ranges = list(sequence.compress(uid for uid in gone if uid in here))
    if not ranges:
        return b""
    return b"* VANISHED (EARLIER) %b\r\n" % sequence.encode_ranges(ranges)


class _Ranges:
    """Membership in sorted, disjoint ranges."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._lows = [low for low, _ in ranges]
        self._highs = [high for _, high in ranges]

    def __contains__(self, uid: int) -> bool:
        i = bisect_right(self._lows, uid) - 1
        return i >= 0 and uid <= self._highs[i]


def _missing(uids: Sequence[int], known: Sequence[Range]) -> list[Range]:
    """Return what of ``known`` is not in ``uids``, without expanding either."""
    found: list[Range] = []
    for low, high in known:
        start = low
        for uid in uids[bisect_left(uids, low) : bisect_right(uids, high)]:
            if uid > start:
                found.append((start, uid - 1))
            start = uid + 1
        if start <= high:
            found.append((start, high))
    return found
