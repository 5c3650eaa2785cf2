"""Sorting the rows of a scan (RFC 8621 section 4.4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from mailserverd.core.errors import Kind, MailError
from storage.metadata.query_filter import (
    EMAIL,
    KEYWORDS,
    RECEIVED,
    SENT,
    SIZE,
    SYSTEM,
    THREAD,
    keyword_test,
    threads_having,
)
from storage.metadata.sql import InIds, Sql, ids, p
from storage.metadata.tables import EMAIL as EMAIL_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from storage.api import Row, Tx
    from storage.model import Sort

    Key = Callable[[Row], Any]

CHUNK = 2000

_e = EMAIL_TABLE.c
_TEXTS = {"from": _e.sort_from, "to": _e.sort_to, "subject": _e.base_subject}
TEXTS = {
    name: Sql(
        select(_e.email_id, column).where(
            _e.account_id == p("a"), InIds(_e.email_id, "emails")
        )
    )
    for name, column in _TEXTS.items()
}


def number_key(order: Sequence[Sort]) -> Key | None:
    """Return a key that sorts rows as ``sort_rows`` does; None if it takes texts."""
    ascending = order[0].ascending if order else False
    keys = []
    for comparator in order:
        key = _plain_key(comparator)
        if key is None:
            return None
        keys.append((key, 1 if comparator.ascending else -1))
    last = 1 if ascending else -1
    return lambda row: (*(key(row) * way for key, way in keys), row[EMAIL] * last)


def sort_rows(
    tx: Tx, account: int, rows: list[Row], order: Sequence[Sort]
) -> list[Row]:
    """Sort in place and return rows; UNSUPPORTED for an unknown comparator."""
    ascending = order[0].ascending if order else False
    rows.sort(key=lambda row: row[EMAIL], reverse=not ascending)
    for comparator in reversed(order):
        key = _key(tx, account, comparator, rows)
        rows.sort(key=key, reverse=not comparator.ascending)
    return rows


def _plain_key(comparator: Sort) -> Key | None:
    """Return a comparator's key as a number, when the row alone tells it."""
    match comparator.by:
        case "receivedAt":
            return lambda row: row[RECEIVED]
        case "sentAt":
            return lambda row: row[RECEIVED] if row[SENT] is None else row[SENT]
        case "size":
            return lambda row: row[SIZE]
        case "hasKeyword":
            return keyword_test(comparator.keyword, SYSTEM, KEYWORDS)
    return None


def _key(tx: Tx, account: int, comparator: Sort, rows: Sequence[Row]) -> Key:
    plain = _plain_key(comparator)
    if plain is not None:
        return plain
    match comparator.by:
        case "from" | "to" | "subject":
            return _text_key(tx, account, comparator.by, rows)
        case "allInThreadHaveKeyword" | "someInThreadHaveKeyword":
            some, every = threads_having(tx, account, comparator.keyword)
            threads = every if comparator.by.startswith("all") else some
            return lambda row: row[THREAD] in threads
    raise MailError(Kind.UNSUPPORTED, "unknown sort")


def _text_key(tx: Tx, account: int, name: str, rows: Sequence[Row]) -> Key:
    texts: dict[int, bytes] = {}
    for start in range(0, len(rows), CHUNK):
        some = ids(row[EMAIL] for row in rows[start : start + CHUNK])
        texts.update(
            (found[0], found[1])
            for found in tx.all(TEXTS[name], {"a": account, "emails": some})
        )
    return lambda row: texts.get(row[EMAIL], b"")
