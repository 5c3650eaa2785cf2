"""Filters of Email/query as functions of a scanned row.

A row is (email_id, thread_id, received_at, sent_at, size, has_attachment, system
bits, keywords).  What concerns mailboxes or whole threads is looked up for each chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from mailserverd.core.errors import Kind, MailError
from storage.metadata.sql import InIds, Sql, ids, p
from storage.metadata.tables import EMAIL_STATE, MAILBOX_EMAIL
from storage.model import SYSTEM_KEYWORDS, Condition, Filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from storage.api import Row, Tx

    Test = Callable[[Row], bool]

EMAIL, THREAD, RECEIVED, SENT, SIZE, ATTACHMENT, SYSTEM, KEYWORDS = range(8)

_me, _es = MAILBOX_EMAIL.c, EMAIL_STATE.c
_mine = (_me.account_id == p("a"), _me.deleted == 0)
IN_MAILBOX = Sql(select(_me.email_id).where(*_mine, _me.mailbox_id == p("box")))
AMONG = (*_mine, InIds(_me.email_id, "emails"))
INSIDE = Sql(select(_me.email_id).where(*AMONG, InIds(_me.mailbox_id, "boxes")))
ELSEWHERE = Sql(select(_me.email_id).where(*AMONG, ~InIds(_me.mailbox_id, "boxes")))
_flags_of = select(_es.thread_id, _es.system, _es.keywords).where(
    _es.account_id == p("a"), _es.shown > 0
)
THREAD_FLAGS = Sql(_flags_of)
FLAGS_OF_THREADS = Sql(_flags_of.where(InIds(_es.thread_id, "threads")))


def emails_in(tx: Tx, account: int, mailbox_id: int) -> frozenset[int]:
    """Return the ids of the emails that a mailbox shows."""
    rows = tx.all(IN_MAILBOX, {"a": account, "box": mailbox_id})
    return frozenset(row[0] for row in rows)


def keyword_test(keyword: str, system: int, keywords: int) -> Test:
    """Return a test whether a row has a keyword; the columns' places are given."""
    bit = SYSTEM_KEYWORDS.get(keyword)
    if bit:
        return lambda row: bool(row[system] & bit)
    word = f" {keyword.lower()} "
    return lambda row: word in f" {row[keywords]} "


def threads_having(tx: Tx, account: int, keyword: str) -> tuple[set[int], set[int]]:
    """Return the threads in which (some, all) emails have a keyword."""
    return _having(keyword, tx.all(THREAD_FLAGS, {"a": account}))


def _having(keyword: str, rows: Iterable[Row]) -> tuple[set[int], set[int]]:
    test = keyword_test(keyword, 1, 2)
    some: set[int] = set()
    lacking: set[int] = set()
    for row in rows:
        (some if test(row) else lacking).add(row[0])
    return some, some - lacking


class Passing:
    """A filter over chunks of rows: what the rows do not tell is looked up by chunk."""

    def __init__(self, tx: Tx, account: int, tree: Filter) -> None:
        self._tx = tx
        self._account = account
        self._look_ups: list[Callable[[Sequence[Row]], None]] = []
        self._test = combine(tree, self._leaf)

    def __call__(self, rows: list[Row]) -> list[Row]:
        """Return those rows of a chunk that pass."""
        if not rows:
            return rows
        for look_up in self._look_ups:
            look_up(rows)
        return list(filter(self._test, rows))

    def _leaf(self, leaf: Condition) -> Test:
        value: Any = leaf.value
        plain = _PLAIN.get(leaf.op)
        if plain is not None:
            return plain(value)
        if leaf.op in _THREADS:
            return self._of_threads(leaf.op, value)
        match leaf.op:
            case "in_mailbox":
                return self._members(INSIDE, (value,))
            case "in_mailbox_other_than":
                return self._members(ELSEWHERE, value)
        raise unknown(leaf)

    def _members(self, statement: Sql, boxes: Iterable[int]) -> Test:
        known: set[int] = set()
        params = {"a": self._account, "boxes": ids(boxes)}

        def look_up(rows: Sequence[Row]) -> None:
            emails = ids(row[EMAIL] for row in rows)
            found = self._tx.all(statement, {**params, "emails": emails})
            known.clear()
            known.update(row[0] for row in found)

        self._look_ups.append(look_up)
        return lambda row: row[EMAIL] in known

    def _of_threads(self, op: str, keyword: str) -> Test:
        known: set[int] = set()

        def look_up(rows: Sequence[Row]) -> None:
            threads = ids({row[THREAD] for row in rows})
            params = {"a": self._account, "threads": threads}
            found = self._tx.all(FLAGS_OF_THREADS, params)
            some, every = _having(keyword, found)
            known.clear()
            known.update(every if op.startswith("all") else some)

        self._look_ups.append(look_up)
        if op.startswith("none"):
            return lambda row: row[THREAD] not in known
        return lambda row: row[THREAD] in known


def combine(tree: Filter, leaf: Callable[[Condition], Test]) -> Test:
    """Return the test for a filter, made of those of its leaves; UNSUPPORTED."""
    if isinstance(tree, Condition):
        return leaf(tree)
    tests = [combine(part, leaf) for part in tree.conditions]
    match tree.op:
        case "AND":
            return lambda row: all(test(row) for test in tests)
        case "OR":
            return lambda row: any(test(row) for test in tests)
        case "NOT":
            return lambda row: not any(test(row) for test in tests)
    raise unknown(tree)


def unknown(tree: Filter) -> MailError:
    """Return the error for a condition or operator that there is not."""
    return MailError(Kind.UNSUPPORTED, f"unknown filter: {tree.op}")


def _not_keyword(value: str) -> Test:
    has = keyword_test(value, SYSTEM, KEYWORDS)
    return lambda row: not has(row)


_THREADS = {
    "all_in_thread_have_keyword",
    "some_in_thread_have_keyword",
    "none_in_thread_have_keyword",
}
_PLAIN: dict[str, Callable[[Any], Test]] = {
    "ids": lambda value: lambda row: row[EMAIL] in value,
    "before": lambda value: lambda row: row[RECEIVED] < value,
    "after": lambda value: lambda row: row[RECEIVED] >= value,
    "sent_before": lambda value: (
        lambda row: row[SENT] is not None and row[SENT] < value
    ),
    "sent_after": lambda value: (
        lambda row: row[SENT] is not None and row[SENT] >= value
    ),
    "min_size": lambda value: lambda row: row[SIZE] >= value,
    "max_size": lambda value: lambda row: row[SIZE] < value,
    "has_attachment": lambda value: lambda row: bool(row[ATTACHMENT]) == value,
    "has_keyword": lambda value: keyword_test(value, SYSTEM, KEYWORDS),
    "not_keyword": _not_keyword,
}
