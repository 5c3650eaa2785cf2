"""Extracted texts of emails: what search scans, and the feed of the indexer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard
from sqlalchemy import and_, select

from storage.metadata.accounts import read_floor
from storage.metadata.sql import InIds, Sql, ids, p
from storage.metadata.tables import DESTROYED, EMAIL, EMAIL_STATE, TYPE_ROW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Tx

_e, _es = EMAIL.c, EMAIL_STATE.c
_email_of_state = and_(_e.account_id == _es.account_id, _e.email_id == _es.email_id)
TEXTS = Sql(
    select(_e.email_id, _e.search_text).where(
        _e.account_id == p("a"), InIds(_e.email_id, "emails")
    )
)
AT_OR_AFTER = Sql(
    select(_es.email_id, _es.created_modseq)
    .where(_es.account_id == p("a"), _es.email_id >= p("low"))
    .order_by(_es.email_id)
    .limit(1)
)
LAST = Sql(
    select(_es.email_id)
    .where(_es.account_id == p("a"))
    .order_by(_es.email_id.desc())
    .limit(1)
)
TAIL = Sql(
    select(_e.email_id, _es.created_modseq, _e.search_text)
    .select_from(EMAIL.join(EMAIL_STATE, _email_of_state))
    .where(_e.account_id == p("a"), _e.email_id >= p("low"))
    .order_by(_e.email_id)
    .limit(p("n"))
)
TAIL_IDS = Sql(
    select(_es.email_id)
    .where(_es.account_id == p("a"), _es.email_id >= p("low"))
    .order_by(_es.email_id)
)
GONE = Sql(
    select(DESTROYED.c.object_id).where(
        DESTROYED.c.account_id == p("a"),
        DESTROYED.c.type == TYPE_ROW,
        DESTROYED.c.modseq > p("since"),
    )
)


MAX_TEXT = 8 << 20  # octets of one email's text, unpacked


def unpack(packed: bytes) -> tuple[str, str]:
    """Return (headers, body) of a stored text."""
    plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=MAX_TEXT)
    headers, _, body = plain.partition(b"\0")
    return _text(headers), _text(body)


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def plain(tx: Tx, account: int, wanted: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return (headers, body) by email id; unknown ids are left out."""
    return {
        key: unpack(packed) if packed else ("", "")
        for key, packed in search_texts(tx, account, wanted).items()
    }


def search_texts(tx: Tx, account: int, wanted: Sequence[int]) -> dict[int, bytes]:
    """Return the stored, still compressed texts by email id."""
    rows = tx.all(TEXTS, {"a": account, "emails": ids(wanted)})
    return {row[0]: row[1] for row in rows}


def tail(tx: Tx, account: int, args: tuple[int, int]) -> list[tuple[int, int, bytes]]:
    """Return (email_id, created_modseq, text) of emails made after a modseq.

    Arguments: (after_modseq, limit).  Emails are numbered in the order of their
    modseq, so the first is found by bisection.
    """
    after, limit = args
    low = first_after(tx, account, after)
    return [
        (key, created, text)
        for key, created, text in tx.all(TAIL, {"a": account, "low": low, "n": limit})
    ]


def tail_ids(tx: Tx, account: int, after: int) -> tuple[int, ...]:
    """Return the ids of emails made after a modseq."""
    low = first_after(tx, account, after)
    return tuple(row[0] for row in tx.all(TAIL_IDS, {"a": account, "low": low}))


def first_after(tx: Tx, account: int, modseq: int) -> int:
    """Return the lowest email id (or above all) whose created_modseq is greater."""
    last = tx.one(LAST, {"a": account})
    low, high = 1, (last[0] if last else 0) + 1
    while low < high:
        middle = (low + high) // 2
        row = tx.one(AT_OR_AFTER, {"a": account, "low": middle})
        if row is not None and row[1] <= modseq:
            low = row[0] + 1
        else:
            high = middle
    return low


def destroyed_since(tx: Tx, account: int, since: int) -> tuple[int, ...] | None:
    """Return ids of emails that are gone, or None when that is not known."""
    floor, _ = read_floor(tx, account)
    if since < floor:
        return None
    return tuple(row[0] for row in tx.all(GONE, {"a": account, "since": since}))
