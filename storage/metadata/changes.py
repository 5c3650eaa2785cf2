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

CREATED, UPDATED, DESTROYED_FATE = range(3)
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


def _start(tx: Tx, account: int, since: Since) -> tuple[_Point, AccountState]:
    floor, state = read_floor(tx, account)
    oldest = since.modseq - (since.after is not None)
    if oldest < floor or since.modseq > state.modseq:
        raise MailError(Kind.CANNOT_CALCULATE_CHANGES)
    return _Point(since), state


def _answer(since: Since, events: list[Event], reached: int) -> ObjectChanges:
    """Cut events to the limit; ``reached`` is the state when nothing is cut off."""
    events.sort()
    after = None
    has_more = since.limit is not None and len(events) > since.limit
    if has_more:
        cut = since.limit or 0
        end = events[cut][0]
        while cut and events[cut - 1][0] == end:
            cut -= 1
        if cut:
            reached = events[cut - 1][0]
        elif since.split and since.limit:
            cut = since.limit
            reached, after = events[cut - 1][:2]
        else:
            raise MailError(Kind.CANNOT_CALCULATE_CHANGES)
        events = events[:cut]
    by_fate: tuple[list[int], list[int], list[int]] = ([], [], [])
    for _, key, fate in events:
        by_fate[fate].append(key)
    created, updated, destroyed = map(tuple, by_fate)
    return ObjectChanges(created, updated, destroyed, reached, has_more, after=after)


def _events(point: _Point, rows: Iterable[Row], tombs: Iterable[Row]) -> list[Event]:
    """Return events of objects: rows are (id, modseq, shown since, ...) of those
    that exist, tombs (id, modseq of the end, shown since, ...)."""
    ended = {
        key: modseq
        for key, modseq, created, *_ in tombs
        if point.knows(created, key) and not point.knows(modseq, key)
    }
    events = []
    for key, modseq, shown, *_ in rows:
        was_there = ended.pop(key, None) is not None or point.knows(shown, key)
        if not was_there:
            events.append((shown, key, CREATED))
        elif not point.knows(modseq, key):
            events.append((modseq, key, UPDATED))
    events += [(modseq, key, DESTROYED_FATE) for key, modseq in ended.items()]
    return events


def _tombs(tx: Tx, account: int, kind: int, point: _Point) -> list[Row]:
    return tx.all(TOMBS, {"a": account, "what": kind, "since": point.first})


def emails(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """Email/changes (RFC 8621 section 4.3): CANNOT_CALCULATE_CHANGES."""
    point, state = _start(tx, account, since)
    rows = tx.all(EMAILS, {"a": account, "since": point.first})
    tombs = _tombs(tx, account, TYPE_EMAIL, point)
    return _answer(since, _events(point, rows, tombs), state.email)


def mailboxes(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """Mailbox/changes (RFC 8621 section 2.2): CANNOT_CALCULATE_CHANGES."""
    point, state = _start(tx, account, since)
    existing = boxes.load(tx, account)
    rows = [(b.mailbox_id, b.modseq, b.created_modseq) for b in existing.values()]
    tombs = _tombs(tx, account, TYPE_MAILBOX, point)
    answer = _answer(since, _events(point, rows, tombs), state.mailbox)
    only_counts = bool(answer.updated) and all(
        point.knows(existing[key].properties_modseq, key) for key in answer.updated
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
    point, state = _start(tx, account, since)
    rows = tx.all(IDENTITIES, {"a": account, "since": point.first})
    tombs = _tombs(tx, account, TYPE_IDENTITY, point)
    return _answer(since, _events(point, rows, tombs), state.identity)


def submissions(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """EmailSubmission/changes (RFC 8621 section 7.2): CANNOT_CALCULATE_CHANGES."""
    point, state = _start(tx, account, since)
    rows = tx.all(SUBMISSIONS, {"a": account, "since": point.first})
    tombs = _tombs(tx, account, TYPE_SUBMISSION, point)
    return _answer(since, _events(point, rows, tombs), state.submission)


# --- threads --------------------------------------------------------------------


class _Thread:
    """What happened to the emails of one thread."""

    __slots__ = ("first", "known", "last", "now")

    def __init__(self) -> None:
        self.first = self.last = 0  # modseqs of news
        self.known = False  # had an email at the client's state
        self.now = False  # has one now

    def news(self, modseq: int) -> None:
        """Note that an email came or went at ``modseq``."""
        self.first = min(self.first or modseq, modseq)
        self.last = max(self.last, modseq)


def threads(tx: Tx, account: int, since: Since) -> ObjectChanges:
    """Thread/changes (RFC 8621 section 3.2): CANNOT_CALCULATE_CHANGES.

    A thread changes when an email joins or leaves it, not with keywords.
    """
    point, state = _start(tx, account, since)
    found: dict[int, _Thread] = collections.defaultdict(_Thread)
    for _, _, shown, thread in tx.all(EMAILS, {"a": account, "since": point.first}):
        if not point.knows(shown, thread):
            found[thread].news(shown)
    for _, modseq, created, thread in _tombs(tx, account, TYPE_EMAIL, point):
        if point.knows(modseq, thread):
            continue
        found[thread].news(modseq)
        if point.knows(created, thread):
            found[thread].known = True
        else:
            found[thread].news(created)
    living = tx.all(IN_THREADS, {"a": account, "threads": ids(found)})
    for thread, _, shown in living:
        found[thread].now = True
        if point.knows(shown, thread):
            found[thread].known = True
    events = [
        event for key, thread in found.items() for event in _thread_event(key, thread)
    ]
    return _answer(since, events, state.thread)


def _thread_event(key: int, thread: _Thread) -> list[Event]:
    if thread.now:
        if thread.known:
            return [(thread.last, key, UPDATED)]
        return [(thread.first, key, CREATED)]
    return [(thread.last, key, DESTROYED_FATE)] if thread.known else []
