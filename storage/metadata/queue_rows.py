"""Statements and row conversions that the queue's units share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select, update

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import BodyType
from storage.metadata.queue_tables import BLOB, MESSAGE, RECIPIENT
from storage.metadata.retired import gone, insert_open
from storage.metadata.sql import Sql, p
from storage.model import BlobRef
from storage.queue import Notice, QueuedMessage, QueuedRecipient, State, queue_id

if TYPE_CHECKING:
    from storage.api import Row, Tx

M, R, B = MESSAGE.c, RECIPIENT.c, BLOB.c
WAITING = (int(State.QUEUED), int(State.LEASED), int(State.HELD))
IS_OPEN = or_(R.state.in_(WAITING), R.notice > 0)

BLOB_COLUMNS = (
    B.hash,
    B.store,
    B.segment,
    B.offset,
    B.length,
    B.size,
    B.codec,
    B.key,
)
LOCATION = ("store", "segment", "offset", "length", "size", "codec", "key")
_insert_blob = insert_open(BLOB)
PUT_BLOB = Sql(  # the newest place is the one that surely exists
    _insert_blob.on_conflict_do_update(
        index_elements=["hash"],
        set_={name: _insert_blob.excluded[name] for name in LOCATION},
    )
)
MESSAGE_COLUMNS = (
    M.message,
    M.reverse_path,
    M.created,
    M.expires,
    M.account,
    M.smtputf8,
    M.body,
    M.ret,
    M.envid,
    M.message_id,
    M.origin,
    *BLOB_COLUMNS,
)
MESSAGE_BY_NUMBER = Sql(
    select(*MESSAGE_COLUMNS)
    .join(BLOB, B.hash == M.hash)
    .where(M.message == p("message"))
)
RECIPIENT_COLUMNS = (
    R.position,
    R.address,
    R.notify,
    R.orcpt,
    R.state,
    R.attempts,
    R.due,
    R.updated,
    R.reply,
    R.status,
    R.mta,
    R.notice,
    R.delay_sent,
)
RECIPIENTS_OF = Sql(
    select(*RECIPIENT_COLUMNS).where(R.message == p("message")).order_by(R.position)
)
_open = (
    select(func.count())
    .select_from(RECIPIENT)
    .where(and_(R.message == M.message, IS_OPEN))
    .scalar_subquery()
)
RECOUNT = Sql(
    update(MESSAGE).where(M.message == p("which")).values(open=_open).returning(M.open)
)
FINISH = Sql(
    update(MESSAGE).where(M.message == p("which"), M.open == 0).values(finished=p("at"))
)
RECOUNT_ALL = Sql(update(MESSAGE).where(M.finished == 0).values(open=_open))
FINISH_ALL = Sql(
    update(MESSAGE).where(M.finished == 0, M.open == 0).values(finished=p("at"))
)


def put_blob(tx: Tx, blob: BlobRef) -> None:
    """Note where a blob lies; UNAVAILABLE when its segment is retired."""
    values = {name: getattr(blob, name) for name in LOCATION}
    if not tx.run(PUT_BLOB, {"hash": blob.hash, **values}):
        raise gone()


def recount(tx: Tx, number: int) -> int:
    """Count what a message still waits for; note when that is nothing."""
    row = tx.one(RECOUNT, {"which": number})
    left: int = row[0] if row else 0
    if not left:
        tx.run(FINISH, {"which": number, "at": int(tx.now)})
    return left


def recount_all(tx: Tx) -> None:
    """``recount`` of every unfinished message."""
    tx.run(RECOUNT_ALL)
    tx.run(FINISH_ALL, {"at": int(tx.now)})


def message(tx: Tx, number: int) -> QueuedMessage:
    """Return a message; NOT_FOUND."""
    row = tx.one(MESSAGE_BY_NUMBER, {"message": number})
    if row is None:
        raise MailError(Kind.NOT_FOUND, "no such queue id")
    reverse_path, created, expires, account, smtputf8, body = row[1:7]
    ret, envid, message_id, origin = row[7:11]
    return QueuedMessage(
        queue_id(number),
        reverse_path,
        BlobRef(*row[11:]),
        created,
        expires,
        account,
        bool(smtputf8),
        BodyType(body),
        ret,
        envid,
        message_id,
        origin,
    )


def recipient(row: Row) -> QueuedRecipient:
    """Turn a row of RECIPIENT_COLUMNS into what callers see."""
    position, address, notify, orcpt, state, attempts, due = row[:7]
    updated, reply, status, mta, notice, delay_sent = row[7:]
    return QueuedRecipient(
        position,
        address,
        tuple(notify.split(",")) if notify else (),
        orcpt,
        State(state),
        attempts,
        due or 0,
        updated,
        reply,
        status,
        mta,
        Notice(notice or 0),
        bool(delay_sent),
    )


def recipients(tx: Tx, number: int) -> tuple[QueuedRecipient, ...]:
    """Return all recipients of a message."""
    return tuple(map(recipient, tx.all(RECIPIENTS_OF, {"message": number})))
