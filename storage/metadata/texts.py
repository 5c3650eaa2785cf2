"""Extracted texts of emails: what search scans, and the feed of the indexer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy import and_, select

from storage.metadata.accounts import read_state
from storage.metadata.sql import InIds, Sql, ids, p
from storage.metadata.tables import DESTROYED, EMAIL, EMAIL_STATE, TYPE_ROW
from storage.text import Query, Text, fields_of, fold, unpack

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
GONE = Sql(
    select(DESTROYED.c.object_id).where(
        DESTROYED.c.account_id == p("a"),
        DESTROYED.c.type == TYPE_ROW,
        DESTROYED.c.modseq > p("since"),
        DESTROYED.c.modseq <= p("until"),
    )
)


def read_text(packed: bytes) -> tuple[str, str]:
    """Return (headers, body) of a stored text; what cannot be read is empty."""
    try:
        return unpack(packed)
    except ValueError:
        return "", ""


def plain(tx: Tx, account: int, wanted: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return (headers, body) by email id; unknown ids are left out."""
    packed = search_texts(tx, account, wanted)
    return {key: read_text(text) for key, text in packed.items()}


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
    rows = tx.all(TAIL, {"a": account, "low": low, "n": limit})
    return [(key, created, text) for key, created, text in rows]


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


# --- the indexer's feed ---------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Feed:
    """What an index lacks to get from a watermark to the next."""

    documents: list[tuple[int, bytes]]  # (email id, packed text)
    removed: tuple[int, ...]
    watermark: int
    reached: int  # the account's modseq; above the watermark there is more

    @property
    def more(self) -> bool:
        """Whether another feed follows at once."""
        return self.watermark < self.reached


FEED_ROWS = 100


def feed(tx: Tx, account: int, args: tuple[int, int, int]) -> Feed:
    """Return what changed after a modseq: (since, most documents, most octets).

    A feed ends between two modseqs, so it may hold more than was asked for when
    one modseq made many emails.
    """
    since, most, octets = args
    reached = read_state(tx, account).modseq
    documents: list[tuple[int, bytes]] = []
    low, size, last = first_after(tx, account, since), 0, since
    watermark = reached
    while watermark == reached:
        rows = tx.all(TAIL, {"a": account, "low": low, "n": FEED_ROWS})
        for key, created, text in rows:
            full = len(documents) >= most or size >= octets
            if full and created != last:
                watermark = last
                break
            documents.append((key, text))
            size, last = size + len(text), created
        if len(rows) < FEED_ROWS:
            break
        low = rows[-1][0] + 1
    removed = destroyed_between(tx, account, (since, watermark))
    return Feed(documents, removed, watermark, reached)


def destroyed_between(tx: Tx, account: int, args: tuple[int, int]) -> tuple[int, ...]:
    """Return ids of emails that went in (since, until], as far as is remembered.

    An index keeps what it was not told to drop; its answers are compared with the
    emails that exist.
    """
    since, until = args
    rows = tx.all(GONE, {"a": account, "since": since, "until": until})
    return tuple(row[0] for row in rows)


# --- matching without an index ----------------------------------------------------


def matching(
    tx: Tx, account: int, args: tuple[int, int, int, Query]
) -> tuple[list[int], int]:
    """Return emails whose words match: (after modseq, lowest id, rows, query).

    Looks at so many rows and returns (ids, the id to go on from); 0 is the end.
    """
    after, low, limit, query = args
    low = low or first_after(tx, account, after)
    rows = tx.all(TAIL, {"a": account, "low": low, "n": limit})
    found = [
        key for key, _, text in rows if Text(fields_of(*read_text(text))).matches(query)
    ]
    return found, rows[-1][0] + 1 if len(rows) == limit else 0


def containing(tx: Tx, account: int, args: tuple[Sequence[int], str, str]) -> list[int]:
    """Return emails of which a field contains a text: (ids, field, folded needle).

    Field: text (headers as extracted, and body), body, from, to, cc, bcc, subject.
    """
    wanted, field, needle = args
    found = []
    for key, packed in search_texts(tx, account, wanted).items():
        headers, body = read_text(packed)
        if needle in _folded(field, headers, body):
            found.append(key)
    return found


def _folded(field: str, headers: str, body: str) -> str:
    match field:
        case "text":
            values = [line.partition(": ")[2] for line in headers.split("\n")]
            return fold("\n".join([*values, body]))
        case "body":
            return fold(body)
    return fold(fields_of(headers, "").get(field, ""))
