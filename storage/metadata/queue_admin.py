"""Units behind the queue commands: list, show, hold, release, retry, cancel, stats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, exists, func, or_, select, true, update

from storage.metadata import queue_rows as rows
from storage.metadata.queue_tables import (
    ACCEPTANCE,
    ACCEPTANCE_TARGET,
    BLOB,
    MESSAGE,
    RECIPIENT,
)
from storage.metadata.retired import open_to
from storage.metadata.sql import InIds, Sql, heavy, ids, p
from storage.model import BlobRef
from storage.queue import Entry, Page, Selection, State, Stats, queue_id, queue_number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement

    from storage.api import Tx

M, R, A = MESSAGE.c, RECIPIENT.c, ACCEPTANCE.c
QUEUED, LEASED, HELD = int(State.QUEUED), int(State.LEASED), int(State.HELD)
CANCELLED = int(State.CANCELLED)

SELECTED: dict[str, ColumnElement[bool]] = {
    "id": R.message == p("which"),
    "domain": R.domain == p("which"),
    "all": true(),
}


def _change(when: ColumnElement[bool], **values: Any) -> dict[str, Sql]:
    """Return the same UPDATE for each way to select recipients."""
    return {
        way: Sql(update(RECIPIENT).where(selected, when).values(**values))
        for way, selected in SELECTED.items()
    }


HOLD = _change(R.state == QUEUED, state=HELD, due=None, updated=p("now"))
HOLD_LATER = _change(and_(R.state == LEASED, R.wish != CANCELLED), wish=HELD)
UNWISH = _change(and_(R.state == LEASED, R.wish == HELD), wish=0)
RELEASE = _change(R.state == HELD, state=QUEUED, due=p("now"), updated=p("now"))
RETRY = _change(R.state == QUEUED, due=p("now"))
CANCEL = _change(
    R.state.in_((QUEUED, HELD)),
    state=CANCELLED,
    due=None,
    updated=p("now"),
)
CANCEL_LATER = _change(R.state == LEASED, wish=CANCELLED)

LISTED = Sql(
    select(M.message)
    .where(
        M.message > p("after"),
        or_(
            and_(p("finished") == 0, M.finished == 0),
            and_(p("finished") == 1, M.finished > 0),
        ),
        or_(p("sender") == "", M.reverse_path == p("sender")),
        or_(
            p("domain") == "",
            exists().where(R.message == M.message, R.domain == p("domain")),
        ),
    )
    .order_by(M.message)
    .limit(p("count"))
)
DEPTHS = Sql(
    select(R.state, func.count()).where(R.state.in_(rows.WAITING)).group_by(R.state)
)
NOTICE_COUNT = Sql(select(func.count()).select_from(RECIPIENT).where(R.notice > 0))
OLDEST = Sql(select(M.created).where(M.finished == 0).order_by(M.message).limit(1))
NEXT_DUE = Sql(
    select(R.due)
    .where(R.due.is_not(None), ~InIds(R.domain, "busy"))
    .order_by(R.due)
    .limit(1)
)
ACCEPTED = Sql(select(func.count()).select_from(ACCEPTANCE).where(A.open > 0))

OLD_MESSAGES = Sql(
    select(M.message, M.hash)
    .where(M.finished > 0, M.finished < p("before"))
    .order_by(M.finished)
    .limit(p("count"))
)
DELETE_RECIPIENTS = Sql(delete(RECIPIENT).where(InIds(R.message, "numbers")))
DELETE_MESSAGES = Sql(delete(MESSAGE).where(InIds(M.message, "numbers")))
OLD_ACCEPTANCES = Sql(
    select(A.acceptance, A.hash)
    .where(A.open == 0, A.created < p("before"))
    .order_by(A.created)
    .limit(p("count"))
)
DELETE_TARGETS = Sql(
    delete(ACCEPTANCE_TARGET).where(ACCEPTANCE_TARGET.c.acceptance == p("which"))
)
DELETE_ACCEPTANCE = Sql(delete(ACCEPTANCE).where(A.acceptance == p("which")))
DELETE_BLOB = Sql(
    delete(BLOB).where(
        BLOB.c.hash == p("of_hash"),
        ~exists().where(M.hash == BLOB.c.hash),
        ~exists().where(A.hash == BLOB.c.hash),
    )
)
_LIVE = or_(
    exists().where(M.hash == BLOB.c.hash, M.finished == 0),
    exists().where(A.hash == BLOB.c.hash, A.open > 0),
)
LIVE_BLOB = Sql(select(*rows.BLOB_COLUMNS).where(BLOB.c.hash == p("hash"), _LIVE))
LIVE_BLOBS = Sql(
    select(*rows.BLOB_COLUMNS)
    .where(BLOB.c.hash > p("after"), _LIVE)
    .order_by(BLOB.c.hash)
    .limit(p("count"))
)
MOVE_BLOB = Sql(
    update(BLOB)
    .where(
        BLOB.c.hash == p("of_hash"),
        BLOB.c.segment == p("old_segment"),
        BLOB.c.offset == p("old_offset"),
        open_to(p("to_segment")),
    )
    .values({name: p(f"to_{name}") for name in rows.LOCATION})
)


def _where(selection: Selection) -> tuple[str, dict[str, object]]:
    if selection.queue_id:
        return "id", {"which": queue_number(selection.queue_id)}
    if selection.domain:
        return "domain", {"which": selection.domain}
    return "all", {}


def show(tx: Tx, _account: int, text: str) -> Entry:
    """Return one message with its recipients; NOT_FOUND."""
    number = queue_number(text)
    return Entry(rows.message(tx, number), rows.recipients(tx, number))


def list_page(tx: Tx, _account: int, page: Page) -> tuple[Entry, ...]:
    """Return a page of messages in order of arrival."""
    key = {
        "after": queue_number(page.after) if page.after else -1,
        "finished": int(page.finished),
        "sender": page.sender,
        "domain": page.domain,
        "count": page.limit,
    }
    return tuple(show(tx, 0, queue_id(row[0])) for row in tx.all(LISTED, key))


@heavy
def hold(tx: Tx, _account: int, selection: Selection) -> int:
    """Stop attempts until released; one in flight is held when it ends.

    Returns the number of recipients this concerns; NOT_FOUND for an unknown id.
    """
    way, key = _checked(tx, selection)
    now = {**key, "now": int(tx.now)}
    return tx.run(HOLD[way], now) + tx.run(HOLD_LATER[way], key)


@heavy
def release(tx: Tx, _account: int, selection: Selection) -> int:
    """Let what is held be tried again, at once; returns the number of recipients."""
    way, key = _checked(tx, selection)
    now = {**key, "now": int(tx.now)}
    return tx.run(RELEASE[way], now) + tx.run(UNWISH[way], key)


@heavy
def retry(tx: Tx, _account: int, selection: Selection) -> int:
    """Make the next attempt due now; returns the number of recipients."""
    way, key = _checked(tx, selection)
    return tx.run(RETRY[way], {**key, "now": int(tx.now)})


@heavy
def cancel(tx: Tx, _account: int, selection: Selection) -> tuple[int, int]:
    """Drop recipients without telling the sender.

    Returns how many are cancelled, and how many will be unless the attempt that is
    in flight succeeds.
    """
    way, key = _checked(tx, selection)
    done = tx.run(CANCEL[way], {**key, "now": int(tx.now)})
    later = tx.run(CANCEL_LATER[way], key)
    if way == "id":
        rows.recount(tx, queue_number(selection.queue_id))
    elif done:
        rows.recount_all(tx)
    return done, later


def _checked(tx: Tx, selection: Selection) -> tuple[str, dict[str, object]]:
    if selection.queue_id:
        rows.message(tx, queue_number(selection.queue_id))
    return _where(selection)


def stats(tx: Tx, _account: int, _args: None) -> Stats:
    """Return depth and times."""
    depth = {row[0]: row[1] for row in tx.all(DEPTHS)}
    notices, oldest, accepted = (
        tx.one(statement) for statement in (NOTICE_COUNT, OLDEST, ACCEPTED)
    )
    return Stats(
        depth.get(QUEUED, 0),
        depth.get(LEASED, 0),
        depth.get(HELD, 0),
        notices[0] if notices else 0,
        oldest[0] if oldest else 0,
        next_due(tx, 0, ()),
        accepted[0] if accepted else 0,
    )


def next_due(tx: Tx, _account: int, busy: tuple[str, ...]) -> int:
    """Return when the next attempt is due or a lease lapses; 0: never.

    Domains that are ``busy`` do not count.
    """
    row = tx.one(NEXT_DUE, {"busy": ids(busy)})
    return row[0] if row else 0


# --- blobs and purging -------------------------------------------------------


@heavy
def purge(tx: Tx, _account: int, args: tuple[int, int]) -> int:
    """Forget (before, at most) finished messages, and applied acceptances.

    Returns how many went; call again until none do.
    """
    before, limit = args
    key = {"before": before, "count": limit}
    messages, accepted = tx.all(OLD_MESSAGES, key), tx.all(OLD_ACCEPTANCES, key)
    numbers = ids(row[0] for row in messages)
    tx.run(DELETE_RECIPIENTS, {"numbers": numbers})
    tx.run(DELETE_MESSAGES, {"numbers": numbers})
    which = [{"which": row[0]} for row in accepted]
    tx.many(DELETE_TARGETS, which)
    tx.many(DELETE_ACCEPTANCE, which)
    tx.many(DELETE_BLOB, [{"of_hash": row[1]} for row in (*messages, *accepted)])
    return len(messages) + len(accepted)


def live_blobs(
    tx: Tx, _account: int, hashes: tuple[bytes, ...]
) -> dict[bytes, BlobRef]:
    """Return where those blobs lie that the queue or an acceptance still needs."""
    found = (tx.one(LIVE_BLOB, {"hash": one}) for one in hashes)
    return {row[0]: BlobRef(*row) for row in found if row is not None}


def list_blobs(tx: Tx, _account: int, args: tuple[bytes, int]) -> tuple[BlobRef, ...]:
    """Return those that are still needed, in order of hash: (after, limit)."""
    after, count = args
    found = tx.all(LIVE_BLOBS, {"after": after, "count": count})
    return tuple(BlobRef(*row) for row in found)


def move_blobs(tx: Tx, _account: int, moves: Iterable[tuple[BlobRef, BlobRef]]) -> None:
    """Let rows that point at the first of each pair point at the second, unless that
    lies in a retired segment."""
    tx.many(
        MOVE_BLOB,
        [
            {
                "of_hash": old.hash,
                "old_segment": old.segment,
                "old_offset": old.offset,
                **{f"to_{name}": getattr(new, name) for name in rows.LOCATION},
            }
            for old, new in moves
        ],
    )
