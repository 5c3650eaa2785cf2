"""Filters of Email/query as functions of a scanned row.

A row is (email_id, thread_id, received_at, sent_at, size, has_attachment, system
bits, keywords).  What concerns mailboxes or whole threads is read once, as sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from mailserverd.core.errors import Kind, MailError
from storage.metadata.sql import InIds, Sql, ids, p
from storage.metadata.tables import EMAIL_STATE, MAILBOX_EMAIL
from storage.model import SYSTEM_KEYWORDS, Condition, Filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.api import Row, Tx

    Test = Callable[[Row], bool]

EMAIL, THREAD, RECEIVED, SENT, SIZE, ATTACHMENT, SYSTEM, KEYWORDS = range(8)

_me, _es = MAILBOX_EMAIL.c, EMAIL_STATE.c
IN_MAILBOX = Sql(
    select(_me.email_id).where(
        _me.account_id == p("a"), _me.mailbox_id == p("box"), _me.deleted == 0
    )
)
ELSEWHERE = Sql(
    select(_me.email_id)
    .distinct()
    .where(_me.account_id == p("a"), ~InIds(_me.mailbox_id, "boxes"), _me.deleted == 0)
)
THREAD_FLAGS = Sql(
    select(_es.thread_id, _es.system, _es.keywords).where(
        _es.account_id == p("a"), _es.shown > 0
    )
)


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
    test = keyword_test(keyword, 1, 2)
    some: set[int] = set()
    lacking: set[int] = set()
    for row in tx.all(THREAD_FLAGS, {"a": account}):
        (some if test(row) else lacking).add(row[0])
    return some, some - lacking


def build(tx: Tx, account: int, tree: Filter) -> Test:
    """Return a function that tells whether a row passes the filter."""
    return combine(tree, lambda leaf: _leaf(tx, account, leaf))


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


def _leaf(tx: Tx, account: int, leaf: Condition) -> Test:
    value: Any = leaf.value
    plain = _PLAIN.get(leaf.op)
    if plain is not None:
        return plain(value)
    if leaf.op in _THREADS:
        some, every = threads_having(tx, account, value)
        threads = every if leaf.op.startswith("all") else some
        if leaf.op.startswith("none"):
            return lambda row: row[THREAD] not in threads
        return lambda row: row[THREAD] in threads
    match leaf.op:
        case "in_mailbox":
            inside = emails_in(tx, account, value)
        case "in_mailbox_other_than":
            rows = tx.all(ELSEWHERE, {"a": account, "boxes": ids(value)})
            inside = frozenset(row[0] for row in rows)
        case _:
            raise unknown(leaf)
    return lambda row: row[EMAIL] in inside


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
