"""Reading messages: mailbox views, FETCH and Email/get rows, texts for search."""

from __future__ import annotations

import dataclasses
from array import array
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, literal, select

from storage.metadata import boxes
from storage.metadata.accounts import read_floor, read_state
from storage.metadata.packed import Packed, numbers, unpacked
from storage.metadata.sql import Greater, InIds, Sql, ids, inline, p
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
    from collections.abc import Sequence

    from storage.api import Row, Tx

CHUNK = 500
FEW_CHANGES = 200  # of the account, that the loop may look through

_e, _es, _me, _bl = EMAIL.c, EMAIL_STATE.c, MAILBOX_EMAIL.c, BLOB.c
_state_of_member = and_(_es.account_id == _me.account_id, _es.email_id == _me.email_id)
_members = MAILBOX_EMAIL.join(EMAIL_STATE, _state_of_member)
_in_box = and_(_me.account_id == p("a"), _me.mailbox_id == p("box"))
_seen_row = (
    _me.uid,
    _me.email_id,
    Greater(_me.modseq, _es.flags_modseq).label("seen_modseq"),
    (_es.system + _me.deleted * DELETED_BIT).label("bits"),
    _es.keywords,
)
_seen = (
    select(*_seen_row)
    .select_from(_members)
    .where(_in_box, _me.uid > p("after"))
    .order_by(_me.uid)
    .limit(p("n"))
    .subquery()
)
VIEW = Sql(select(func.count(), *map(Packed, _seen.c)).select_from(_seen))
CHANGED = Sql(
    select(*_seen_row)
    .select_from(EMAIL_STATE.join(MAILBOX_EMAIL, _state_of_member))
    .where(
        _es.account_id == p("a"),
        _es.modseq > p("since"),
        _me.mailbox_id + 0 == p("box"),  # from what changed, not from the mailbox
    )
    .order_by(_me.uid)
)
_vanished = select(EXPUNGED.c.uid).where(
    EXPUNGED.c.account_id == p("a"),
    EXPUNGED.c.mailbox_id == p("box"),
    EXPUNGED.c.modseq > p("since"),
)
VANISHED = Sql(_vanished.order_by(EXPUNGED.c.uid))
SOME_VANISHED = Sql(_vanished.limit(p("n")))
SOME_CHANGED = Sql(
    select(_es.modseq)
    .where(_es.account_id == p("a"), _es.modseq > p("since"))
    .limit(p("n"))
)


@dataclasses.dataclass(frozen=True, slots=True)
class ViewChunk:
    """A part of a view: what follows ``after``, and the mailbox as it stood then.

    Columns in uid order, with the type codes of ``View``; ``bits`` are those of its
    flags, ``keywords`` joined ones by position, where there are any.
    """

    uidvalidity: int
    uidnext: int
    highestmodseq: int
    messages: int
    uids: array[int]
    email_ids: array[int]
    modseqs: array[int]
    bits: array[int]
    keywords: dict[int, str]

    @property
    def rows(self) -> list[tuple[int, int, int, int, str]]:
        """The same by message: (uid, email id, modseq, bits, keywords joined)."""
        columns = (self.uids, self.email_ids, self.modseqs, self.bits)
        return [
            (*row, self.keywords.get(position, ""))
            for position, row in enumerate(zip(*columns, strict=True))
        ]


@inline
def view_head(tx: Tx, account: int, args: tuple[int, int]) -> ViewChunk:
    """Return the first rows of a mailbox: (mailbox_id, limit)."""
    return view_chunk(tx, account, (args[0], 0, args[1]))


def view_chunk(tx: Tx, account: int, args: tuple[int, int, int]) -> ViewChunk:
    """Return rows with uid > after: (mailbox_id, after, limit); NOT_FOUND."""
    mailbox_id, after, limit = args
    box = boxes.get(tx, account, mailbox_id)
    params = {"a": account, "box": mailbox_id, "after": after, "n": limit}
    row = tx.one(VIEW, params) or (0, *[None] * 5)
    words = unpacked(row[5])
    return ViewChunk(
        box[6],
        box[7],
        box[8],
        box[12],
        numbers("I", row[1]),
        numbers("Q", row[2]),
        numbers("Q", row[3]),
        numbers("I", row[4]),
        {n: word for n, word in enumerate(words) if word} if any(words) else {},
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


def extend_view(view: View, chunk: ViewChunk) -> None:
    """Append a chunk in uid order; ``view.keyword_sets`` grows as needed."""
    first = len(view.flags)
    view.uids.extend(chunk.uids)
    view.email_ids.extend(chunk.email_ids)
    view.modseqs.extend(chunk.modseqs)
    view.flags.extend(chunk.bits)
    if not chunk.keywords:
        return
    known = {" ".join(words): n for n, words in enumerate(view.keyword_sets, 1)}
    for fresh in dict.fromkeys(chunk.keywords.values()):
        if fresh not in known:
            view.keyword_sets.append(tuple(fresh.split()))
            known[fresh] = len(view.keyword_sets)
    for position, word in chunk.keywords.items():
        view.flags[first + position] |= known[word] << KEYWORD_SHIFT


@inline
def reached(tx: Tx, account: int, _: None) -> int:
    """Return the account's modseq."""
    return read_state(tx, account).modseq


@inline
def quick_delta(tx: Tx, account: int, args: tuple[int, int]) -> ViewDelta | None:
    """Do as ``delta``, on the loop; None when so much changed that it takes long."""
    mailbox_id, since = args
    params = {"a": account, "box": mailbox_id, "since": since, "n": FEW_CHANGES + 1}
    for statement in (SOME_CHANGED, SOME_VANISHED):
        if len(tx.all(statement, params)) > FEW_CHANGES:
            return None
    return delta(tx, account, args)


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
    changed = tuple(
        (uid, email_id, modseq, bits, tuple(words.split()))
        for uid, email_id, modseq, bits, words in tx.all(CHANGED, params)
        if modseq > since
    )
    vanished = tuple(row[0] for row in tx.all(VANISHED, params))
    return ViewDelta(highest, uidnext, changed, vanished)


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

_WIDE = {
    _e.envelope: Column.ENVELOPE,
    _e.bodystructure: Column.BODYSTRUCTURE,
    _e.list_json: Column.LIST,
    _e.part_table: Column.PARTS,
}
BLOB_COLUMNS = (  # the fields of ``BlobRef`` in order
    _bl.hash,
    _bl.store,
    _bl.segment,
    _bl.offset,
    _bl.length,
    _bl.size,
    _bl.codec,
    _bl.key,
)
_email_of_state = and_(_e.account_id == _es.account_id, _e.email_id == _es.email_id)


def _tables(columns: Column, start: Any) -> Any:
    """Join what the columns need."""
    if columns & ~Column.MAILBOXES:
        start = start.join(EMAIL, _email_of_state)
    if columns & Column.BASIC:
        start = start.join(BLOB, _bl.hash == _e.hash)
    return start


def _columns(columns: Column) -> list[Any]:
    """Return the fields of ``EmailRow`` in order, constants for what is not read."""
    basic = bool(columns & Column.BASIC)
    return [
        _es.email_id,
        _es.thread_id,
        *(BLOB_COLUMNS if basic else [literal(0)] * len(BLOB_COLUMNS)),
        _es.size,
        _e.header_size if basic else literal(0),
        _es.received_at,
        _es.sent_at,
        _es.modseq,
        _es.created_modseq,
        _es.system,
        _es.keywords,
        *(wide if columns & column else literal(b"") for wide, column in _WIDE.items()),
    ]


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
    basic = bool(columns & Column.BASIC)
    statement = BY_IDS[columns & ~Column.MAILBOXES]
    found = {
        row[0]: _make_row(row, places.get(row[0], ()), basic, 0)
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
    basic = bool(columns & Column.BASIC)
    return [
        (row[0], _make_row(row[2:], places.get(row[2], ()), basic, row[1]))
        for row in rows
    ]


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


def _make_row(
    row: Row, mailboxes: tuple[int, ...], basic: bool, save_date: int
) -> EmailRow:
    """Return the row that ``_columns`` selected."""
    words = row[17]
    return EmailRow(
        row[0],
        row[1],
        BlobRef(*row[2:10]) if basic else None,
        row[10],
        row[11],
        row[12],
        row[13],
        row[14],
        row[15],
        make_flags(row[16], words) if words else NO_FLAGS[row[16]],
        mailboxes,
        row[18],
        row[19],
        row[20],
        row[21],
        save_date,
    )


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


@inline
def few_states(
    tx: Tx, account: int, wanted: Sequence[int]
) -> dict[int, tuple[int, Flags, tuple[int, ...]]]:
    """Do as ``get_states``, on the loop: for a page of about 50."""
    return get_states(tx, account, wanted)
