"""Reading messages: mailbox views, FETCH and Email/get rows, texts for search."""

from __future__ import annotations

import dataclasses
from array import array
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, select

from storage.metadata import boxes
from storage.metadata.accounts import read_floor, read_state
from storage.metadata.sql import InIds, Sql, ids, inline, p
from storage.metadata.tables import (
    BLOB,
    EMAIL,
    EMAIL_STATE,
    EXPUNGED,
    MAILBOX_EMAIL,
)
from storage.model import (
    DELETED_BIT,
    KEYWORD_SHIFT,
    BlobRef,
    Column,
    EmailRow,
    Flags,
    View,
    ViewDelta,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from storage.api import Row, Tx

CHUNK = 500

_e, _es, _me, _bl = EMAIL.c, EMAIL_STATE.c, MAILBOX_EMAIL.c, BLOB.c
_state_of_member = and_(_es.account_id == _me.account_id, _es.email_id == _me.email_id)
_members = MAILBOX_EMAIL.join(EMAIL_STATE, _state_of_member)
_in_box = and_(_me.account_id == p("a"), _me.mailbox_id == p("box"))
_seen_row = (
    _me.uid,
    _me.email_id,
    _me.modseq,
    _es.flags_modseq,
    _es.system,
    _me.deleted,
    _es.keywords,
)
VIEW = Sql(
    select(*_seen_row)
    .select_from(_members)
    .where(_in_box, _me.uid > p("after"))
    .order_by(_me.uid)
    .limit(p("n"))
)
CHANGED = Sql(
    select(*_seen_row)
    .select_from(EMAIL_STATE.join(MAILBOX_EMAIL, _state_of_member))
    .where(
        _es.account_id == p("a"),
        _es.modseq > p("since"),
        _me.mailbox_id == p("box"),
    )
    .order_by(_me.uid)
)
VANISHED = Sql(
    select(EXPUNGED.c.uid)
    .where(
        EXPUNGED.c.account_id == p("a"),
        EXPUNGED.c.mailbox_id == p("box"),
        EXPUNGED.c.modseq > p("since"),
    )
    .order_by(EXPUNGED.c.uid)
)


@dataclasses.dataclass(frozen=True, slots=True)
class ViewChunk:
    """A part of a view: what follows ``after``, and the mailbox as it stood then."""

    uidvalidity: int
    uidnext: int
    highestmodseq: int
    messages: int
    rows: tuple[tuple[int, int, int, int, str], ...]  # uid, email, modseq, bits, words


@inline
def view_head(tx: Tx, account: int, args: tuple[int, int]) -> ViewChunk:
    """Return the first rows of a mailbox: (mailbox_id, limit)."""
    return view_chunk(tx, account, (args[0], 0, args[1]))


def view_chunk(tx: Tx, account: int, args: tuple[int, int, int]) -> ViewChunk:
    """Return rows with uid > after: (mailbox_id, after, limit); NOT_FOUND."""
    mailbox_id, after, limit = args
    box = boxes.get(tx, account, mailbox_id)
    rows = tx.all(VIEW, {"a": account, "box": mailbox_id, "after": after, "n": limit})
    return ViewChunk(box[6], box[7], box[8], box[12], tuple(map(_shown, rows)))


def _shown(row: Row) -> tuple[int, int, int, int, str]:
    uid, email_id, modseq, flags_modseq, system, deleted, keywords = row
    return (
        uid,
        email_id,
        modseq if modseq > flags_modseq else flags_modseq,
        system | DELETED_BIT if deleted else system,
        keywords,
    )


def make_view(mailbox_id: int, head: ViewChunk) -> View:
    """Return an empty view of the mailbox as it stood at a chunk."""
    return View(
        mailbox_id,
        head.uidvalidity,
        head.uidnext,
        head.highestmodseq,
        array("I"),
        array("Q"),
        array("Q"),
        array("I"),
        [],
    )


def extend_view(view: View, rows: Iterable[tuple[int, int, int, int, str]]) -> None:
    """Append rows in uid order; ``view.keyword_sets`` grows as needed."""
    numbers = {
        " ".join(words): (index + 1) << KEYWORD_SHIFT
        for index, words in enumerate(view.keyword_sets)
    }
    numbers[""] = 0
    for uid, email_id, modseq, bits, words in rows:
        view.uids.append(uid)
        view.email_ids.append(email_id)
        view.modseqs.append(modseq)
        number = numbers.get(words)
        if number is None:
            view.keyword_sets.append(tuple(words.split()))
            number = numbers[words] = len(view.keyword_sets) << KEYWORD_SHIFT
        view.flags.append(bits | number)


@inline
def reached(tx: Tx, account: int, _: None) -> int:
    """Return the account's modseq."""
    return read_state(tx, account).modseq


@inline
def delta(tx: Tx, account: int, args: tuple[int, int]) -> ViewDelta:
    """Return what changed in a mailbox: (mailbox_id, since modseq); NOT_FOUND."""
    mailbox_id, since = args
    box = boxes.get(tx, account, mailbox_id)
    uidnext, highest = box[7], box[8]
    floor, _ = read_floor(tx, account)
    if since < floor:
        return ViewDelta(highest, uidnext, (), (), complete=False)
    if since >= highest:
        return ViewDelta(highest, uidnext, (), ())
    params = {"a": account, "box": mailbox_id, "since": since}
    rows = map(_shown, tx.all(CHANGED, params))
    changed = tuple(
        (uid, email_id, modseq, bits, tuple(words.split()))
        for uid, email_id, modseq, bits, words in rows
        if modseq > since
    )
    vanished = tuple(row[0] for row in tx.all(VANISHED, params))
    return ViewDelta(highest, uidnext, changed, vanished)


def long_delta(tx: Tx, account: int, args: tuple[int, int]) -> ViewDelta:
    """Do as ``delta``, off the loop: for a client that was away for long."""
    result: ViewDelta = delta(tx, account, args)
    return result


def vanished(tx: Tx, account: int, args: tuple[int, int]) -> tuple[int, ...] | None:
    """Return uids expunged since a modseq, or None when that is not known."""
    mailbox_id, since = args
    boxes.get(tx, account, mailbox_id)
    floor, _ = read_floor(tx, account)
    if since < floor:
        return None
    params = {"a": account, "box": mailbox_id, "since": since}
    return tuple(row[0] for row in tx.all(VANISHED, params))


# --- rows ---------------------------------------------------------------------

_basic = (
    _es.email_id,
    _es.modseq,
    _es.created_modseq,
    _es.thread_id,
    _es.system,
    _es.keywords,
    _es.received_at,
    _es.sent_at,
    _es.size,
)
_blob = (
    _e.header_size,
    _e.hash,
    _bl.store,
    _bl.segment,
    _bl.offset,
    _bl.length,
    _bl.size,
    _bl.codec,
    _bl.key,
)
_WIDE = {
    Column.ENVELOPE: _e.envelope,
    Column.BODYSTRUCTURE: _e.bodystructure,
    Column.LIST: _e.list_json,
    Column.PARTS: _e.part_table,
}
_FIELDS = {
    Column.ENVELOPE: "envelope",
    Column.BODYSTRUCTURE: "bodystructure",
    Column.LIST: "list_json",
    Column.PARTS: "part_table",
}
_email_of_state = and_(_e.account_id == _es.account_id, _e.email_id == _es.email_id)


def _tables(columns: Column, start: Any) -> Any:
    """Join what the columns need."""
    if columns & ~Column.MAILBOXES:
        start = start.join(EMAIL, _email_of_state)
    if columns & Column.BASIC:
        start = start.join(BLOB, _bl.hash == _e.hash)
    return start


def _columns(columns: Column) -> list[Any]:
    chosen: list[Any] = list(_basic)
    if columns & Column.BASIC:
        chosen += _blob
    return chosen + [wide for column, wide in _WIDE.items() if columns & column]


def _by_ids(columns: Column) -> Sql:
    return Sql(
        select(*_columns(columns))
        .select_from(_tables(columns, EMAIL_STATE))
        .where(_es.account_id == p("a"), InIds(_es.email_id, "emails"))
    )


def _by_uids(columns: Column) -> Sql:
    return Sql(
        select(_me.uid, _me.save_date, *_columns(columns))
        .select_from(_tables(columns, _members))
        .where(_in_box, _me.uid >= p("low"), _me.uid <= p("high"))
        .order_by(_me.uid)
        .limit(p("n"))
    )


_ALL = [Column(bits) for bits in range(64) if not bits & Column.MAILBOXES.value]
BY_IDS = {columns: _by_ids(columns) for columns in _ALL}
BY_UIDS = {columns: _by_uids(columns) for columns in _ALL}
SHOWN_IN = Sql(
    select(_me.email_id, _me.mailbox_id).where(
        _me.account_id == p("a"), InIds(_me.email_id, "emails"), _me.deleted == 0
    )
)


def read_rows(
    tx: Tx, account: int, args: tuple[Sequence[int], Column]
) -> dict[int, EmailRow]:
    """Return rows by email id, in the order asked for; unknown ids are left out."""
    wanted, columns = args
    encoded = ids(wanted)
    places = _places(tx, account, encoded, columns)
    build = _builder(columns)
    statement = BY_IDS[columns & ~Column.MAILBOXES]
    found = {
        row[0]: build(row, places.get(row[0], ()), 0)
        for row in tx.all(statement, {"a": account, "emails": encoded})
    }
    return {key: found[key] for key in wanted if key in found}


@inline
def few_rows(
    tx: Tx, account: int, args: tuple[Sequence[int], Column]
) -> dict[int, EmailRow]:
    """Do as ``read_rows``, on the loop: for a page of about 50."""
    return read_rows(tx, account, args)


def read_page(
    tx: Tx, account: int, args: tuple[int, int, int, Column, int]
) -> list[tuple[int, EmailRow]]:
    """Return (uid, row) in a range of uids: (mailbox, low, high, columns, limit)."""
    mailbox_id, low, high, columns, limit = args
    rows = tx.all(
        BY_UIDS[columns & ~Column.MAILBOXES],
        {"a": account, "box": mailbox_id, "low": low, "high": high, "n": limit},
    )
    places = _places(tx, account, ids(row[2] for row in rows), columns)
    build = _builder(columns)
    return [(row[0], build(row[2:], places.get(row[2], ()), row[1])) for row in rows]


@inline
def few_page(
    tx: Tx, account: int, args: tuple[int, int, int, Column, int]
) -> list[tuple[int, EmailRow]]:
    """Do as ``read_page``, on the loop: for a page of about 50."""
    return read_page(tx, account, args)


def _places(
    tx: Tx, account: int, encoded: bytes, columns: Column
) -> dict[int, tuple[int, ...]]:
    """Return the mailboxes that show each email, if they are asked for."""
    places: dict[int, tuple[int, ...]] = {}
    if not columns & Column.MAILBOXES:
        return places
    for email_id, mailbox_id in tx.all(SHOWN_IN, {"a": account, "emails": encoded}):
        places[email_id] = (*places.get(email_id, ()), mailbox_id)
    return places


NO_FLAGS = [Flags(system) for system in range(16)]


def make_flags(system: int, keywords: str) -> Flags:
    """Return flags as they travel."""
    return Flags(system, tuple(keywords.split())) if keywords else NO_FLAGS[system]


def _builder(columns: Column) -> Any:
    """Return a function (row, mailboxes, save_date) -> EmailRow for these columns."""
    basic = bool(columns & Column.BASIC)
    start = len(_basic) + (len(_blob) if basic else 0)
    names = [_FIELDS[column] for column in _WIDE if columns & column]

    def build(row: Row, mailboxes: tuple[int, ...], save_date: int) -> EmailRow:
        key, modseq, created, thread, system, words, received, sent, size = row[:9]
        return EmailRow(
            key,
            thread,
            BlobRef(*row[10:start]) if basic else None,
            size,
            row[9] if basic else 0,
            received,
            sent,
            modseq,
            created,
            make_flags(system, words),
            mailboxes,
            save_date=save_date,
            **dict(zip(names, row[start:], strict=True)),
        )

    return build


# --- states -----------------------------------------------------------------------

STATES = Sql(
    select(_es.email_id, _es.modseq, _es.system, _es.keywords).where(
        _es.account_id == p("a"), InIds(_es.email_id, "emails"), _es.shown > 0
    )
)


def get_states(
    tx: Tx, account: int, wanted: Sequence[int]
) -> dict[int, tuple[int, Flags, tuple[int, ...]]]:
    """Return (modseq, flags, mailboxes) of the emails that JMAP shows."""
    encoded = ids(wanted)
    places = _places(tx, account, encoded, Column.MAILBOXES)
    return {
        key: (modseq, make_flags(system, words), places.get(key, ()))
        for key, modseq, system, words in tx.all(
            STATES, {"a": account, "emails": encoded}
        )
    }
