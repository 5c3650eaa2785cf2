"""Email/query (RFC 8621 section 4.4): a mailbox by date from its index, the rest
by a scan of the narrow table and a filter evaluated in Python, off the loop.

Ties are broken by id, in the direction of the first comparator.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from typing import TYPE_CHECKING

from sqlalchemy import select

from mailserverd.core.errors import Kind, MailError
from storage.metadata import boxes, query_filter
from storage.metadata.accounts import read_state
from storage.metadata.query_sort import sort_rows
from storage.metadata.sql import InIds, Sql, ids, inline, p
from storage.metadata.tables import EMAIL_STATE, MAILBOX_EMAIL
from storage.model import (
    SYSTEM_KEYWORDS,
    AccountState,
    Condition,
    EmailQuery,
    Filter,
    Operator,
    QueryResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from storage.api import Row, Tx

PAGE_ROWS = 500  # what the loop may read of an index
CHUNK = 2000
MANY = 10_000  # emails that are looked up one by one rather than in a scan of all
EVERYTHING = 1 << 62

_me, _es = MAILBOX_EMAIL.c, EMAIL_STATE.c
_page = (_me.account_id == p("a"), _me.mailbox_id == p("box"), _me.deleted == 0)


def _ordered(ascending: bool, unseen: bool) -> Sql:
    conditions = (*_page, _me.unseen == 1) if unseen else _page
    order = (_me.received_at, _me.email_id)
    if not ascending:
        order = tuple(column.desc() for column in order)  # type: ignore[assignment]
    chosen = select(_me.email_id, _me.thread_id).where(*conditions)
    return Sql(chosen.order_by(*order).limit(p("n")).offset(p("skip")))


ORDERED = {
    (ascending, unseen): _ordered(ascending, unseen)
    for ascending in (False, True)
    for unseen in (False, True)
}
_facts = (
    _es.email_id,
    _es.thread_id,
    _es.received_at,
    _es.sent_at,
    _es.size,
    _es.has_attachment,
    _es.system,
    _es.keywords,
)
_wanted = (
    _es.account_id == p("a"),
    _es.shown > 0,
    _es.email_id > p("after"),
    _es.system.op("&")(p("mask")) == p("bits"),
    _es.received_at >= p("low"),
    _es.received_at < p("high"),
)
SCAN = Sql(select(*_facts).where(*_wanted).order_by(_es.email_id).limit(p("n")))
SCAN_IDS = Sql(
    select(*_facts)
    .where(*_wanted, InIds(_es.email_id, "emails"))
    .order_by(_es.email_id)
    .limit(p("n"))
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Page:
    """A query that the index of a mailbox answers."""

    mailbox_id: int
    unseen: bool
    ascending: bool


def _as_page(query: EmailQuery) -> _Page | None:
    """Recognise "this mailbox by date", perhaps only what is unread."""
    if len(query.sort) != 1 or query.sort[0].by != "receivedAt":
        return None
    box, unseen = None, False
    for leaf in _and_leaves(query.filter):
        match leaf:
            case Condition("in_mailbox", int(value)) if box is None:
                box = value
            case Condition("not_keyword", "$seen"):
                unseen = True
            case _:
                return None
    if box is None:
        return None
    return _Page(box, unseen, query.sort[0].ascending)


def _and_leaves(tree: Filter | None) -> list[Filter]:
    """Return what a filter requires all together."""
    if tree is None:
        return []
    if isinstance(tree, Operator) and tree.op == "AND":
        return [leaf for part in tree.conditions for leaf in _and_leaves(part)]
    return [tree]


@inline
def quick(tx: Tx, account: int, query: EmailQuery) -> QueryResult | None:
    """Answer the first pages of a mailbox from its index, on the loop.

    None when that would take long, or when the query is another one.
    """
    page = _as_page(query)
    limit = query.limit
    if page is None or limit is None or query.anchor is not None:
        return None
    if query.position < 0 or query.position + limit > PAGE_ROWS:
        return None
    total = None
    if query.total:
        total = _quick_total(tx, account, query, page)
        if total is None:
            return None
    found = _first(tx, account, query, page, limit)
    if found is None:
        return None
    return QueryResult(found, query.position, total, read_state(tx, account))


def _quick_total(tx: Tx, account: int, query: EmailQuery, page: _Page) -> int | None:
    """Return the total from the mailbox's counters, when they tell it."""
    row = tx.one(boxes.ONE, {"a": account, "box": page.mailbox_id})
    if row is None:
        return 0
    unseen, deleted, total_emails, total_threads = row[13], row[14], row[16], row[18]
    if not page.unseen:
        return int(total_threads if query.collapse_threads else total_emails)
    return None if deleted or query.collapse_threads else int(unseen)


def _first(
    tx: Tx, account: int, query: EmailQuery, page: _Page, limit: int
) -> tuple[int, ...] | None:
    statement = ORDERED[page.ascending, page.unseen]
    params = {"a": account, "box": page.mailbox_id}
    end = query.position + limit
    if not query.collapse_threads:
        rows = tx.all(statement, {**params, "n": limit, "skip": query.position})
        return tuple(row[0] for row in rows)
    wanted = min(PAGE_ROWS, 2 * end + 20)
    rows = tx.all(statement, {**params, "n": wanted, "skip": 0})
    kept = _collapse(rows)
    if len(kept) < end and len(rows) == wanted:
        return None
    return tuple(kept[query.position : end])


def _collapse(rows: Sequence[Row]) -> list[int]:
    """Keep the first email of each thread: rows are (email, thread, ...)."""
    seen: dict[int, int] = {}
    for row in rows:
        seen.setdefault(row[1], row[0])
    return list(seen.values())


def run(tx: Tx, account: int, query: EmailQuery) -> QueryResult:
    """Answer any query; ANCHOR_NOT_FOUND."""
    page = _as_page(query)
    if page is not None:
        params = {"a": account, "box": page.mailbox_id, "n": EVERYTHING, "skip": 0}
        rows = tx.all(ORDERED[page.ascending, page.unseen], params)
    elif _wants_top(query):
        return _top(tx, account, query)
    else:
        rows = sort_rows(tx, account, list(_scan(tx, account, query)), query.sort)
    found = _collapse(rows) if query.collapse_threads else [row[0] for row in rows]
    return window(query, found, read_state(tx, account))


def _wants_top(query: EmailQuery) -> bool:
    """Whether only the first rows by date are wanted, so that not all are kept."""
    by_date = len(query.sort) == 1 and query.sort[0].by == "receivedAt"
    plain = not query.collapse_threads and query.anchor is None
    return by_date and plain and query.limit is not None and query.position >= 0


def _top(tx: Tx, account: int, query: EmailQuery) -> QueryResult:
    """Answer a page by date; memory is that of the rows up to its end."""
    pick = heapq.nsmallest if query.sort[0].ascending else heapq.nlargest
    end = query.position + (query.limit or 0)
    seen = itertools.count()
    rows = (row for row, _ in zip(_scan(tx, account, query), seen, strict=False))
    first = pick(max(end, 1), rows, key=lambda row: (row[2], row[0]))
    total = next(seen) if query.total else None
    wanted = tuple(row[0] for row in first[query.position : end])
    return QueryResult(wanted, query.position, total, read_state(tx, account))


def window(query: EmailQuery, found: list[int], state: AccountState) -> QueryResult:
    """Cut the answer out of all ids in order; ANCHOR_NOT_FOUND."""
    start = _start(query, found)
    end = None if query.limit is None else start + query.limit
    total = len(found) if query.total else None
    return QueryResult(tuple(found[start:end]), start, total, state)


def _start(query: EmailQuery, found: list[int]) -> int:
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


@dataclasses.dataclass(slots=True)
class _Bounds:
    """What the scan itself can leave out."""

    mask: int = 0  # system bits looked at
    bits: int = 0  # and how they must be
    low: int = -(1 << 62)
    high: int = 1 << 62
    only: frozenset[int] | None = None
    never: bool = False

    def limit_to(self, emails: frozenset[int]) -> None:
        """Look at these emails only."""
        self.only = emails if self.only is None else self.only & emails

    def flag(self, keyword: str, *, there: bool) -> bool:
        """Require a system flag; False when the keyword is not one."""
        bit = SYSTEM_KEYWORDS.get(keyword)
        if not bit:
            return False
        if self.mask & bit and bool(self.bits & bit) != there:
            self.never = True
        self.mask |= bit
        self.bits |= bit if there else 0
        return True


def _scan(tx: Tx, account: int, query: EmailQuery) -> Iterator[Row]:
    """Yield the facts of every email that passes the filter."""
    bounds = _Bounds()
    rest = [
        leaf
        for leaf in _and_leaves(query.filter)
        if not _bound(tx, account, bounds, leaf)
    ]
    test: Callable[[Row], bool] = query_filter.build(
        tx, account, Operator("AND", tuple(rest))
    )
    if bounds.never:
        return
    params: dict[str, object] = {
        "a": account,
        "mask": bounds.mask,
        "bits": bounds.bits,
        "low": bounds.low,
        "high": bounds.high,
        "n": CHUNK,
    }
    for rows in _chunks(tx, params, bounds.only):
        yield from filter(test, rows) if rest else rows


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


def _bound(tx: Tx, account: int, bounds: _Bounds, leaf: Filter) -> bool:
    """Take a required condition into the scan; False when Python must test it."""
    match leaf:
        case Condition("in_mailbox", int(value)):
            bounds.limit_to(query_filter.emails_in(tx, account, value))
        case Condition("ids", frozenset() as value):
            bounds.limit_to(value)
        case Condition("has_keyword", str(value)):
            return bounds.flag(value, there=True)
        case Condition("not_keyword", str(value)):
            return bounds.flag(value, there=False)
        case Condition("before", int(value)):
            bounds.high = min(bounds.high, value)
        case Condition("after", int(value)):
            bounds.low = max(bounds.low, value)
        case _:
            return False
    return True
