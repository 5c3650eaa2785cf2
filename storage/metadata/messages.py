"""Reading messages: mailbox views, FETCH and Email/get rows, texts for search."""

from __future__ import annotations

import dataclasses
from array import array
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, and_, literal, select, true

from storage.metadata import boxes
from storage.metadata.accounts import FLOOR, found, read_floor, read_state
from storage.metadata.packed import Packed, numbers, unpacked
from storage.metadata.sql import Greater, InIds, Sql, ids, inline, p
from storage.metadata.tables import (
    BLOB,
    EMAIL,
    EMAIL_STATE,
    EXPUNGED,
    MAILBOX,
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
FEW_CHANGES = 200  # of the account, that the loop may look through

_e, _es, _me, _bl = EMAIL.c, EMAIL_STATE.c, MAILBOX_EMAIL.c, BLOB.c
_b = MAILBOX.c
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
_packed = (
    select(*(Packed(column).label(column.key) for column in _seen.c))
    .select_from(_seen)
    .subquery()
)
VIEW = Sql(
    select(_b.uidvalidity, _b.uidnext, _b.highestmodseq, _b.messages, *_packed.c)
    .select_from(MAILBOX.join(_packed, true()))
    .where(_b.account_id == p("a"), _b.mailbox_id == p("box"))
)
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
_some = (
    select(EMAIL_STATE)
    .where(_es.account_id == p("a"), _es.modseq > p("since"))
    .limit(p("n"))
    .subquery()
)
FEW_CHANGED = Sql(  # as CHANGED, of the first of the account's changes
    select(
        _me.uid,
        _me.email_id,
        Greater(_me.modseq, _some.c.flags_modseq),
        _some.c.system + _me.deleted * DELETED_BIT,
        _some.c.keywords,
    )
    .select_from(
        _some.join(
            MAILBOX_EMAIL,
            and_(
                _some.c.account_id == _me.account_id,
                _some.c.email_id == _me.email_id,
            ),
        )
    )
    .where(_me.mailbox_id + 0 == p("box"))
    .order_by(_me.uid)
)
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
    params = {"a": account, "box": mailbox_id, "after": after, "n": limit}
    row = boxes.existing(tx.all(VIEW, params))
    words = unpacked(row[8])
    return ViewChunk(
        row[0],
        row[1],
        row[2],
        row[3],
        numbers("I", row[4]),
        numbers("Q", row[5]),
        numbers("Q", row[6]),
        numbers("I", row[7]),
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
    some, gone, box, floor, changed = tx.each(
        (SOME_CHANGED, params),
        (SOME_VANISHED, params),
        (boxes.ONE, params),
        (FLOOR, params),
        (FEW_CHANGED, params),
    )
    if len(some) > FEW_CHANGES or len(gone) > FEW_CHANGES:
        return None
    vanished = sorted(row[0] for row in gone)
    return _delta(
        boxes.existing(box),
        found(floor[0] if floor else None),
        since,
        changed,
        vanished,
    )


def delta(tx: Tx, account: int, args: tuple[int, int]) -> ViewDelta:
    """Return what changed in a mailbox: (mailbox_id, since modseq); NOT_FOUND."""
    mailbox_id, since = args
    params = {"a": account, "box": mailbox_id, "since": since}
    box = boxes.get(tx, account, mailbox_id)
    floor = found(tx.one(FLOOR, params))
    if since < floor[0] or since >= box[8]:
        return _delta(box, floor, since, (), ())
    changed, gone = tx.each((CHANGED, params), (VANISHED, params))
    return _delta(box, floor, since, changed, [row[0] for row in gone])


def _delta(
    box: Row, floor: Row, since: int, changed: Iterable[Row], vanished: Iterable[int]
) -> ViewDelta:
    uidnext, highest = box[7], box[8]
    if since >= highest:  # also below the floor: nothing happened here since
        return ViewDelta(highest, uidnext, (), ())
    if since < floor[0]:
        return ViewDelta(highest, uidnext, (), (), complete=False)
    rows = tuple(
        (uid, email_id, modseq, bits, tuple(words.split()))
        for uid, email_id, modseq, bits, words in changed
        if modseq > since
    )
    return ViewDelta(highest, uidnext, rows, tuple(vanished))


def vanished(tx: Tx, account: int, args: tuple[int, int]) -> tuple[int, ...] | None:
    """Return uids expunged since a modseq, or None when that is not known."""
    mailbox_id, since = args
    if since >= boxes.get(tx, account, mailbox_id)[8]:
        return ()
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


def by_ids(columns: Column) -> Select[Any]:
    """Return the SELECT of ``make_row``'s rows by email id."""
    return (
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
BY_IDS = {columns: Sql(by_ids(columns)) for columns in _ALL}
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
    params = {"a": account, "emails": ids(wanted)}
    basic = bool(columns & Column.BASIC)
    statement = BY_IDS[columns & ~Column.MAILBOXES]
    if columns & Column.MAILBOXES:
        shown, rows = tx.each((SHOWN_IN, params), (statement, params))
    else:
        shown, rows = [], tx.all(statement, params)
    places = places_of(shown)
    known = {row[0]: make_row(row, places.get(row[0], ()), basic, 0) for row in rows}
    return {key: known[key] for key in wanted if key in known}


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
    places: dict[int, tuple[int, ...]] = {}
    if columns & Column.MAILBOXES:
        encoded = ids(row[2] for row in rows)
        places = places_of(tx.all(SHOWN_IN, {"a": account, "emails": encoded}))
    basic = bool(columns & Column.BASIC)
    return [
        (row[0], make_row(row[2:], places.get(row[2], ()), basic, row[1]))
        for row in rows
    ]


@inline
def few_page(
    tx: Tx, account: int, args: tuple[int, int, int, Column, int]
) -> list[tuple[int, EmailRow]]:
    """Do as ``read_page``, on the loop: for a page of about 50."""
    return read_page(tx, account, args)


def places_of(rows: Iterable[Row]) -> dict[int, tuple[int, ...]]:
    """Return the mailboxes that show each email, from what ``SHOWN_IN`` found."""
    places: dict[int, tuple[int, ...]] = {}
    for email_id, mailbox_id in rows:
        places[email_id] = (*places.get(email_id, ()), mailbox_id)
    return places


NO_FLAGS = [Flags(system) for system in range(16)]


def make_flags(system: int, keywords: str) -> Flags:
    """Return flags as they travel."""
    return Flags(system, tuple(keywords.split())) if keywords else NO_FLAGS[system]


def make_row(
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
    params = {"a": account, "emails": ids(wanted)}
    shown, states = tx.each((SHOWN_IN, params), (STATES, params))
    places = places_of(shown)
    return {
        key: (modseq, make_flags(system, words), places.get(key, ()))
        for key, modseq, system, words in states
    }


@inline
def few_states(
    tx: Tx, account: int, wanted: Sequence[int]
) -> dict[int, tuple[int, Flags, tuple[int, ...]]]:
    """Do as ``get_states``, on the loop: for a page of about 50."""
    return get_states(tx, account, wanted)
