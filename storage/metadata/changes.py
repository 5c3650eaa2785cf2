"""What changed since a modseq: Foo/changes (RFC 8620 section 5.2).

Answered from modseq columns and tombstones.  An object's event stands at the modseq
of its creation, of its last change, or of its end; a limited answer is cut between
two modseqs, so that every intermediate state is one that the account had.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from sqlalchemy import select

from mailserverd.core.errors import Kind, MailError
from storage.metadata import boxes
from storage.metadata.accounts import read_floor
from storage.metadata.sql import InIds, Sql, ids, p
from storage.metadata.tables import (
    DESTROYED,
    EMAIL_STATE,
    IDENTITY,
    SUBMISSION,
    TYPE_EMAIL,
    TYPE_IDENTITY,
    TYPE_MAILBOX,
    TYPE_SUBMISSION,
)
from storage.model import AccountState, ObjectChanges, Since

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage.api import Row, Tx

_es, _d = EMAIL_STATE.c, DESTROYED.c
EMAILS = Sql(
    select(_es.email_id, _es.modseq, _es.shown, _es.thread_id).where(
        _es.account_id == p("a"), _es.modseq >= p("since"), _es.shown > 0
    )
)
TOMBS = Sql(
    select(_d.object_id, _d.modseq, _d.created, _d.thread_id).where(
        _d.account_id == p("a"), _d.type == p("what"), _d.modseq >= p("since")
    )
)
IN_THREADS = Sql(
    select(_es.thread_id, _es.email_id, _es.shown).where(
        _es.account_id == p("a"), InIds(_es.thread_id, "threads"), _es.shown > 0
    )
)
IDENTITIES, SUBMISSIONS = (
    Sql(
        select(table.c[key], table.c.modseq, table.c.created_modseq).where(
            table.c.account_id == p("a"), table.c.modseq >= p("since")
        )
    )
    for table, key in ((IDENTITY, "identity_id"), (SUBMISSION, "submission_id"))
)

CREATED, UPDATED, ENDED = range(3)
Event = tuple[int, int, int]  # modseq, id, fate


class _Point:
    """A state that a client has, to compare objects' modseqs with."""

    def __init__(self, since: Since) -> None:
        self.modseq = since.modseq
        self._after = since.after

    @property
    def first(self) -> int:
        """The lowest modseq in which something may be news."""
        return self.modseq + (self._after is None)

    def knows(self, modseq: int, key: int) -> bool:
        """Whether what happened to this object at ``modseq`` is known."""
        if modseq != self.modseq or self._after is None:
            return modseq <= self.modseq
        return key <= self._after


def _start(
    tx: Tx, account: int, since: Since, kind: str
) -> tuple[_Point, AccountState]:
    """Return where to begin; ``kind`` names the field of the objects' state.

    A client with their last state has missed nothing, however old that is.
    """
    floor, state = read_floor(tx, account)
    oldest = since.modseq - (since.after is not None)
    needed = min(floor, getattr(state, kind))
    if oldest < needed or since.modseq > state.modseq:
        raise MailError(Kind.CANNOT_CALCULATE_CHANGES)
    return _Point(since), state


def _answer(since: Since, events: list[Event], reached: int) -> ObjectChanges:
    """Cut events to the limit; ``reached`` is the state when nothing is cut off."""
    events.sort()
    after = None
    cut = len(events) if since.limit is None else _fitting(events, since.limit)
    has_more = cut < len(events)
    if has_more:
        inside = cut
        while cut and events[cut - 1][0] == events[cut][0]:
            cut -= 1
        cut = cut or (inside if since.split else 0)
        if not cut:
            raise MailError(Kind.CANNOT_CALCULATE_CHANGES)
        reached, after = events[cut - 1][:2]
    created, updated, destroyed = _fold(events[:cut])
    return ObjectChanges(created, updated, destroyed, reached, has_more, after=after)


def _fitting(events: list[Event], limit: int) -> int:
    """Return how many events concern no more than ``limit`` objects."""
    ids: set[int] = set()
    for index, (_, key, _) in enumerate(events):
        ids.add(key)
        if len(ids) > limit:
            return index
    return len(events)


def _fold(events: list[Event]) -> tuple[tuple[int, ...], ...]:
    """Return (created, updated, destroyed), each object once or not at all."""
    firsts: dict[int, int] = {}
    lasts: dict[int, int] = {}
    for _, key, fate in events:
        firsts.setdefault(key, fate)
        lasts[key] = fate
    by_fate: tuple[list[int], list[int], list[int]] = ([], [], [])
    for key, first in firsts.items():
        there_before, there_after = first != CREATED, lasts[key] != ENDED
        if there_before and there_after:
            by_fate[UPDATED].append(key)
        elif there_after:
            by_fate[CREATED].append(key)
        elif there_before:
            by_fate[ENDED].append(key)
    return tuple(map(tuple, by_fate))


def _events(point: _Point, rows: Iterable[Row], tombs: Iterable[Row]) -> list[Event]:
    """Return events of objects: rows are (id, modseq, shown since, ...) of those
    that exist, tombs (id, modseq of the end, shown since, ...)."""
    events = []
    for key, modseq, created, *_ in tombs:
        if point.knows(modseq, key):
            continue
        if not point.knows(created, key):
            events.append((created, key, CREATED))
        events.append((modseq, key, ENDED))
    for key, modseq, shown, *_ in rows:
        if not point.knows(shown, key):
            events.append((shown, key, CREATED))
        elif not point.knows(modseq, key):
            events.append((modseq, key, UPDATED))
    return events


def _tombs(tx: Tx, account: int, kind: int, point: _Point) -> list[Row]:
    return tx.all(TOMBS, {"a": account, "what": kind, "since": point.first})


def emails(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """Email/changes (RFC 8621 section 4.3): CANNOT_CALCULATE_CHANGES."""
    point, state = _start(tx, account, since, "email")
    rows = tx.all(EMAILS, {"a": account, "since": point.first})
    tombs = _tombs(tx, account, TYPE_EMAIL, point)
    return _answer(since, _events(point, rows, tombs), state.email)


def mailboxes(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """Mailbox/changes (RFC 8621 section 2.2): CANNOT_CALCULATE_CHANGES."""
    point, state = _start(tx, account, since, "mailbox")
    existing = boxes.load(tx, account)
    rows = [(b.mailbox_id, b.modseq, b.created_modseq) for b in existing.values()]
    tombs = _tombs(tx, account, TYPE_MAILBOX, point)
    answer = _answer(since, _events(point, rows, tombs), state.mailbox)
    # Who stopped halfway knows all up to there but what changed again later.
    only_counts = since.after is None and bool(answer.updated)
    only_counts = only_counts and all(
        existing[key].properties_modseq <= since.modseq for key in answer.updated
    )
    return ObjectChanges(
        answer.created,
        answer.updated,
        answer.destroyed,
        answer.new_modseq,
        answer.has_more,
        only_counts,
        answer.after,
    )


def identities(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """Identity/changes (RFC 8621 section 6.2): CANNOT_CALCULATE_CHANGES."""
    point, state = _start(tx, account, since, "identity")
    rows = tx.all(IDENTITIES, {"a": account, "since": point.first})
    tombs = _tombs(tx, account, TYPE_IDENTITY, point)
    return _answer(since, _events(point, rows, tombs), state.identity)


def submissions(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """EmailSubmission/changes (RFC 8621 section 7.2): CANNOT_CALCULATE_CHANGES."""
    point, state = _start(tx, account, since, "submission")
    rows = tx.all(SUBMISSIONS, {"a": account, "since": point.first})
    tombs = _tombs(tx, account, TYPE_SUBMISSION, point)
    return _answer(since, _events(point, rows, tombs), state.submission)


# --- threads --------------------------------------------------------------------


NEVER = 1 << 62
Span = tuple[int, int]  # modseqs: an email was shown from, and no longer from


def threads(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """Thread/changes (RFC 8621 section 3.2): CANNOT_CALCULATE_CHANGES.

    A thread changes when an email joins or leaves it, not with keywords.
    """
    point, state = _start(tx, account, since, "thread")
    spans: dict[int, list[Span]] = collections.defaultdict(list)
    for _, modseq, created, thread in _tombs(tx, account, TYPE_EMAIL, point):
        if not point.knows(modseq, thread):
            spans[thread].append((created, modseq))
    touched = set(spans)
    for _, _, shown, thread in tx.all(EMAILS, {"a": account, "since": point.first}):
        if not point.knows(shown, thread):
            touched.add(thread)
    living = tx.all(IN_THREADS, {"a": account, "threads": ids(touched)})
    for thread, _, shown in living:
        spans[thread].append((shown, NEVER))
    events = [
        event for key in touched for event in _thread_events(point, key, spans[key])
    ]
    return _answer(since, events, state.thread)


def _thread_events(point: _Point, key: int, spans: list[Span]) -> list[Event]:
    """Return what happened to a thread that exists while any email is shown."""
    events = []
    for start, end, news in _runs(sorted(spans)):
        if not point.knows(start, key):
            events.append((start, key, CREATED))
        else:
            fresh = [modseq for modseq in news if not point.knows(modseq, key)]
            if fresh and end == NEVER:
                events.append((max(fresh), key, UPDATED))
        if end != NEVER:
            events.append((end, key, ENDED))
    return events


def _runs(spans: list[Span]) -> list[tuple[int, int, list[int]]]:
    """Join spans that touch: (start, end, modseqs of what came and went inside)."""
    runs: list[tuple[int, int, list[int]]] = []
    for start, end in spans:
        news = [start] if end == NEVER else [start, end]
        if runs and start <= runs[-1][1]:
            first, last, before = runs[-1]
            runs[-1] = (first, max(last, end), before + news)
        else:
            runs.append((start, end, news))
    return runs
