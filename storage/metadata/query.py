"""Email/query (RFC 8621 section 4.4): by date from an index, as far as is wanted; the
rest by a scan of the narrow table, off the loop.

Ties are broken by id, in the direction of the first comparator.
"""

from __future__ import annotations

import dataclasses
import heapq
from array import array
from typing import TYPE_CHECKING

from sqlalchemy import select

from mailserverd.core.errors import Kind, MailError
from storage.metadata import boxes, query_filter
from storage.metadata.accounts import STATE, read_state
from storage.metadata.accounts import found as found_account
from storage.metadata.query_sort import number_key, sort_rows
from storage.metadata.query_walk import (
    COUNT,
    FACTS,
    FIRST,
    HIDDEN,
    HIGHEST,
    LOWEST,
    THREADS,
    Way,
    beginning,
    walk,
)
from storage.metadata.sql import InIds, Sql, ids, inline, p
from storage.metadata.tables import EMAIL_STATE
from storage.model import (
    SEEN,
    SYSTEM_KEYWORDS,
    AccountState,
    Condition,
    EmailQuery,
    Filter,
    Operator,
    QueryResult,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from storage.api import Row, Tx
    from storage.metadata.query_sort import Key

QUICK_ROWS = 500  # what the loop may read of an index
CHUNK = 2000
MANY = 10_000  # emails that are looked up one by one rather than in a scan of all

_es = EMAIL_STATE.c
_wanted = (
    _es.account_id == p("a"),
    _es.shown > 0,
    _es.email_id > p("after"),
    _es.system.op("&")(p("mask")) == p("bits"),
    _es.received_at >= p("low"),
    _es.received_at < p("high"),
)
_found = select(_es.email_id, *FACTS).order_by(_es.email_id).limit(p("n"))
SCAN = Sql(_found.where(*_wanted))
SCAN_IDS = Sql(_found.where(*_wanted, InIds(_es.email_id, "emails")))


# --- what is asked for ------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Asked:
    """A filter taken apart: what an index or the scan decides, and the rest."""

    by_date: bool
    box: int | None = None  # the mailbox to walk through
    mask: int = 0  # system bits looked at
    bits: int = 0  # and how they must be
    low: int = LOWEST
    high: int = HIGHEST
    only: frozenset[int] | None = None
    never: bool = False
    boxes: list[int] = dataclasses.field(default_factory=list)  # to be in as well
    rest: list[Filter] = dataclasses.field(default_factory=list)

    @property
    def plain(self) -> bool:
        """Whether nothing but a mailbox, and perhaps what is unseen, is asked for."""
        seen = self.unseen or not self.mask
        return seen and not (self.never or self.rest or self.dated or self.boxes)

    @property
    def dated(self) -> bool:
        """Whether dates are bounded, or ids are given."""
        return self.only is not None or (self.low, self.high) != (LOWEST, HIGHEST)

    @property
    def unseen(self) -> bool:
        """Whether the index of what is unseen in the mailbox answers."""
        return self.box is not None and (self.mask, self.bits) == (SEEN, 0)

    def way(self, query: EmailQuery) -> Way:
        """Return the walk through what may be found, in order of date."""
        mask = 0 if self.unseen else self.mask
        ascending = query.sort[0].ascending
        facts = bool(self.rest or mask or self.boxes)
        bounds = self.low, self.high, mask, self.bits
        return Way(self.box, self.unseen, ascending, facts, *bounds)

    def take(self, leaf: Filter) -> None:
        """Take one required condition in."""
        match leaf:
            case Condition("in_mailbox", int(value)):
                if self.box is None:
                    self.box = value
                elif value != self.box:
                    self.boxes.append(value)
            case Condition("ids", frozenset() as value):
                self.only = value if self.only is None else self.only & value
            case Condition("has_keyword", str(value)) if value in SYSTEM_KEYWORDS:
                self._flag(SYSTEM_KEYWORDS[value], there=True)
            case Condition("not_keyword", str(value)) if value in SYSTEM_KEYWORDS:
                self._flag(SYSTEM_KEYWORDS[value], there=False)
            case Condition("before", int(value)):
                self.high = min(self.high, value)
            case Condition("after", int(value)):
                self.low = max(self.low, value)
            case _:
                self.rest.append(leaf)

    def _flag(self, bit: int, *, there: bool) -> None:
        if self.mask & bit and bool(self.bits & bit) != there:
            self.never = True
        self.mask |= bit
        self.bits |= bit if there else 0

    def passing(self, tx: Tx, account: int) -> query_filter.Passing | None:
        """Return what the rows must pass, if anything."""
        boxes = [Condition("in_mailbox", box) for box in self.boxes]
        if not self.rest and not boxes:
            return None
        tree = Operator("AND", (*self.rest, *boxes))
        return query_filter.Passing(tx, account, tree)


def _asked(query: EmailQuery) -> _Asked:
    by_date = len(query.sort) == 1 and query.sort[0].by == "receivedAt"
    asked = _Asked(by_date)
    for leaf in _and_leaves(query.filter):
        asked.take(leaf)
    return asked


def _and_leaves(tree: Filter | None) -> list[Filter]:
    """Return what a filter requires all together."""
    if tree is None:
        return []
    if isinstance(tree, Operator) and tree.op == "AND":
        return [leaf for part in tree.conditions for leaf in _and_leaves(part)]
    return [tree]


# --- pages on the loop ------------------------------------------------------------


@inline
def quick(tx: Tx, account: int, query: EmailQuery) -> QueryResult | None:
    """Answer the first pages by date from an index, on the loop.

    None when that would take long, or when the query is another one.
    """
    asked, limit = _asked(query), query.limit
    if not asked.by_date or not asked.plain or limit is None:
        return None
    end = query.position + limit
    if query.anchor is not None or query.position < 0 or end > QUICK_ROWS:
        return None
    # enough for most threads to be seen, and never more than the loop may read
    first = min(QUICK_ROWS, 2 * end + 20) if query.collapse_threads else max(end, 1)
    params = {"a": account, "box": asked.box}
    rows, state_rows, counts = tx.each(
        beginning(asked.way(query), account, first),
        (STATE, params),
        (HIDDEN if asked.box is None else boxes.ONE, params),
    )
    state = AccountState(*found_account(state_rows[0] if state_rows else None))
    total = _quick_total(query, asked, state, counts)
    if query.total and total is None:
        return None
    found = _collapsed(rows) if query.collapse_threads else [row[0] for row in rows]
    if len(found) < end and len(rows) == first:
        return None
    wanted = tuple(found[query.position : end])
    return QueryResult(wanted, query.position, total if query.total else None, state)


def _quick_total(
    query: EmailQuery, asked: _Asked, state: AccountState, counts: Sequence[Row]
) -> int | None:
    """Return the total of a plain query when counters tell it."""
    if asked.box is not None:
        return _in_box(counts, asked, collapse=query.collapse_threads)
    return None if query.collapse_threads else _in_all(state, counts)


def _in_all(state: AccountState, hidden: Sequence[Row]) -> int:
    return state.message_count - int(hidden[0][0] if hidden else 0)


def _counted(tx: Tx, account: int, query: EmailQuery, asked: _Asked) -> int | None:
    """Return the total when counters or a count tell it."""
    collapse = query.collapse_threads
    if asked.never:
        return 0
    if asked.box is not None:
        box = {"a": account, "box": asked.box}
        counts = tx.all(boxes.ONE, box) if asked.plain else None
        return None if counts is None else _in_box(counts, asked, collapse=collapse)
    if asked.plain and not collapse:
        return _in_all(read_state(tx, account), tx.all(HIDDEN, {"a": account}))
    if asked.rest or asked.only is not None:
        return None
    if collapse and not asked.plain:
        return None
    bounds = {"low": asked.low, "high": asked.high, "mask": asked.mask}
    params = {"a": account, "bits": asked.bits, **bounds}
    row = tx.one(THREADS if collapse else COUNT, params)
    return int(row[0]) if row else 0


def _in_box(counts: Sequence[Row], asked: _Asked, *, collapse: bool) -> int | None:
    """Return the total of what the row of ``boxes.ONE`` counts, if it does."""
    if not counts:
        return 0
    row = counts[0]
    unseen, deleted, total_emails, total_threads = row[13], row[14], row[16], row[18]
    if not asked.unseen:
        return int(total_threads if collapse else total_emails)
    return None if deleted or collapse else int(unseen)


def _first_of_threads(rows: Iterable[Row], seen: set[int]) -> list[Row]:
    """Leave out emails of threads seen before: rows are (email, thread, ...)."""
    fresh = []
    for row in rows:
        if row[1] not in seen:
            seen.add(row[1])
            fresh.append(row)
    return fresh


def _collapsed(rows: Iterable[Row]) -> list[int]:
    """Return the first email of each thread."""
    return [row[0] for row in _first_of_threads(rows, set())]


# --- any query --------------------------------------------------------------------


def run(tx: Tx, account: int, query: EmailQuery) -> QueryResult:
    """Answer any query; ANCHOR_NOT_FOUND, UNSUPPORTED."""
    asked = _asked(query)
    passing = asked.passing(tx, account)  # even if nothing can pass: it checks
    few = asked.only is not None and len(asked.only) <= MANY
    if asked.by_date and not few:
        return _walked(tx, account, query, asked, passing)
    rows = () if asked.never else _scan(tx, account, asked, passing)
    pages = query.limit is not None and query.anchor is None and query.position >= 0
    key = number_key(query.sort)
    if pages and key is not None and not query.collapse_threads:
        return _top(tx, account, query, rows, key)
    ordered = sort_rows(tx, account, [r for some in rows for r in some], query.sort)
    found = _collapsed(ordered) if query.collapse_threads else [r[0] for r in ordered]
    return window(query, found, read_state(tx, account))


def _walked(
    tx: Tx,
    account: int,
    query: EmailQuery,
    asked: _Asked,
    passing: query_filter.Passing | None,
) -> QueryResult:
    """Answer a query by date, reading as far as it takes."""
    total = _counted(tx, account, query, asked) if query.total else None
    everything = query.total and total is None
    found = array("Q")
    end = None
    seen: set[int] = set()
    chunks = () if asked.never else walk(tx, account, asked.way(query), _first(query))
    for chunk in chunks:
        rows = chunk
        if asked.only is not None:
            rows = [row for row in rows if row[0] in asked.only]
        if passing is not None:
            rows = passing(rows)
        if query.collapse_threads:
            rows = _first_of_threads(rows, seen)
        fresh = len(found)
        found.extend(row[0] for row in rows)
        if end is None:
            end = _end(query, found, fresh)
        if end is not None and end <= len(found) and not everything:
            break
    result = window(query, found, read_state(tx, account))
    return result if total is None else dataclasses.replace(result, total=total)


def _first(query: EmailQuery) -> int:
    """Return how many rows to begin with."""
    if query.limit is None or query.anchor is not None or query.position < 0:
        return CHUNK
    return min(CHUNK, max(FIRST, query.position + query.limit))


def _end(query: EmailQuery, found: array[int], since: int) -> int | None:
    """Return where the window ends; None while that is not known.

    The anchor is looked for among what was found ``since``.
    """
    if query.limit is None:
        return None
    if query.anchor is None:
        return None if query.position < 0 else query.position + query.limit
    try:
        anchor = found.index(query.anchor, since)
    except ValueError:
        return None
    return max(0, anchor + query.anchor_offset) + query.limit


def _top(
    tx: Tx,
    account: int,
    query: EmailQuery,
    chunks: Iterable[list[Row]],
    key: Key,
) -> QueryResult:
    """Answer a page in an order of numbers; memory is that of its end."""
    end = query.position + (query.limit or 0)
    total = 0

    def counted() -> Iterator[Row]:
        nonlocal total
        for rows in chunks:
            total += len(rows)
            yield from rows

    first = heapq.nsmallest(max(end, 1), counted(), key=key)
    wanted = tuple(row[0] for row in first[query.position : end])
    state = read_state(tx, account)
    return QueryResult(wanted, query.position, total if query.total else None, state)


def window(query: EmailQuery, found: Sequence[int], state: AccountState) -> QueryResult:
    """Cut the answer out of all ids in order; ANCHOR_NOT_FOUND."""
    start = _start(query, found)
    end = None if query.limit is None else start + query.limit
    total = len(found) if query.total else None
    return QueryResult(tuple(found[start:end]), start, total, state)


def _start(query: EmailQuery, found: Sequence[int]) -> int:
    """Return where the window begins (RFC 8620 section 5.5)."""
    if query.anchor is not None:
        try:
            return max(0, found.index(query.anchor) + query.anchor_offset)
        except ValueError:
            raise MailError(Kind.ANCHOR_NOT_FOUND) from None
    if query.position < 0:
        return max(0, len(found) + query.position)
    return query.position


# --- the scan -------------------------------------------------------------------


def _scan(
    tx: Tx, account: int, asked: _Asked, passing: query_filter.Passing | None
) -> Iterator[list[Row]]:
    """Yield the facts of every email that passes, in chunks by id."""
    only = asked.only
    if asked.box is not None:
        inside = query_filter.emails_in(tx, account, asked.box)
        only = inside if only is None else only & inside
    params: dict[str, object] = {
        "a": account,
        "mask": asked.mask,
        "bits": asked.bits,
        "low": asked.low,
        "high": asked.high,
        "n": CHUNK,
    }
    for rows in _chunks(tx, params, only):
        yield rows if passing is None else passing(rows)


def _chunks(
    tx: Tx, params: dict[str, object], only: frozenset[int] | None
) -> Iterator[list[Row]]:
    """Yield rows of the account, or of ``only`` these emails."""
    if only is not None and len(only) <= MANY:
        wanted = sorted(only)
        for start in range(0, len(wanted), CHUNK):
            some = ids(wanted[start : start + CHUNK])
            yield tx.all(SCAN_IDS, {**params, "after": 0, "emails": some})
        return
    after = 0
    while True:
        rows = tx.all(SCAN, {**params, "after": after})
        yield rows if only is None else [row for row in rows if row[0] in only]
        if len(rows) < CHUNK:
            return
        after = rows[-1][0]
