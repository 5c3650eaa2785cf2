"""Counters of mailboxes: differences gathered in memory, written as sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.metadata import edit_sql as sql
from storage.metadata.sql import ids
from storage.model import DRAFT, SEEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.api import Tx

MESSAGES, UNSEEN, DELETED, SIZE, TOTAL, UNREAD, THREADS, UNREAD_THREADS = range(8)
_NAMES = (
    "d_messages",
    "d_unseen",
    "d_deleted",
    "d_size",
    "d_total",
    "d_unread",
    "d_threads",
    "d_unread_threads",
)


class Counts:
    """What a change adds to and takes from mailboxes and their threads."""

    def __init__(self) -> None:
        self._boxes: dict[int, list[int]] = {}
        self._threads: dict[int, dict[int, list[int]]] = {}

    def add(
        self, box: int, thread: int, size: int, system: int, deleted: int, sign: int
    ) -> None:
        """Count a membership that comes (sign 1) or goes (-1)."""
        counts = self._boxes.get(box)
        if counts is None:
            counts = self._boxes[box] = [0] * 8
            self._threads[box] = {}
        counts[MESSAGES] += sign
        counts[SIZE] += sign * size
        if not system & SEEN:
            counts[UNSEEN] += sign
        if deleted:
            counts[DELETED] += sign
            return
        threads = self._threads[box]
        pair = threads.get(thread)
        if pair is None:
            pair = threads[thread] = [0, 0]
        counts[TOTAL] += sign
        pair[0] += sign
        if not system & (SEEN | DRAFT):
            counts[UNREAD] += sign
            pair[1] += sign

    def write(
        self, tx: Tx, account: int, modseq: int, uidnext: Mapping[int, int]
    ) -> bool:
        """Write counters of all mailboxes concerned, and their new ``uidnext``.

        Returns whether any change shows in a Mailbox object of JMAP.
        """
        shown = False
        for box, counts in self._boxes.items():
            threads = self._threads[box]
            moved = {key: pair for key, pair in threads.items() if pair != [0, 0]}
            if moved:
                counts[THREADS], counts[UNREAD_THREADS] = _threads(
                    tx, account, box, moved
                )
            visible = any(counts[TOTAL:])
            shown = shown or visible
            params: dict[str, object] = dict(zip(_NAMES, counts, strict=True))
            params |= {
                "a": account,
                "box": box,
                "m": modseq,
                "object_m": modseq if visible else 0,
                "next": uidnext.get(box, 0),
            }
            tx.run(sql.COUNT_BOX, params)
        return shown


def _threads(
    tx: Tx, account: int, box: int, moved: Mapping[int, list[int]]
) -> tuple[int, int]:
    """Write thread counts; returns the change of (threads, unread threads)."""
    params = {"a": account, "box": box, "threads": ids(moved)}
    known = {row[0]: row[1:] for row in tx.all(sql.THREADS, params)}
    threads = unread_threads = 0
    rows, empty = [], []
    for thread, (d_emails, d_unread) in moved.items():
        emails, unread = known.get(thread, (0, 0))
        now, now_unread = emails + d_emails, unread + d_unread
        threads += (now > 0) - (emails > 0)
        unread_threads += (now_unread > 0) - (unread > 0)
        if now <= 0:
            empty.append(thread)
        else:
            rows.append((account, box, thread, now, now_unread))
    if rows:
        tx.many(sql.SET_THREAD, rows)
    if empty:
        tx.run(sql.DROP_THREADS, {**params, "threads": ids(empty)})
    return threads, unread_threads
