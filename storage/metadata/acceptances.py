"""Units for acceptances: the commit point of a message with several targets.

Committing the acceptance is what a 250 stands for (DESIGN decision 2); each target
then gets its part, now or after a crash, idempotently by the acceptance's id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from storage.metadata import queue_rows as rows
from storage.metadata.queue_tables import ACCEPTANCE, ACCEPTANCE_TARGET, BLOB
from storage.metadata.queue_units import BY_KEY, enqueue
from storage.metadata.sql import Sql, p
from storage.model import BlobRef
from storage.queue import Acceptance, Pending, PendingPart, TargetPart, queue_id

if TYPE_CHECKING:
    from storage.api import Tx

A, T, B = ACCEPTANCE.c, ACCEPTANCE_TARGET.c, BLOB.c
INSERT = Sql(upsert(ACCEPTANCE).on_conflict_do_nothing(index_elements=["acceptance"]))
INSERT_TARGET = Sql(insert(ACCEPTANCE_TARGET))
APPLY = Sql(
    update(ACCEPTANCE_TARGET)
    .where(T.acceptance == p("which"), T.target == p("at"), T.applied == 0)
    .values(applied=p("now"))
)
LEFT = (
    select(func.count())
    .select_from(ACCEPTANCE_TARGET)
    .where(T.acceptance == A.acceptance, T.applied == 0)
    .scalar_subquery()
)
RECOUNT = Sql(
    update(ACCEPTANCE)
    .where(A.acceptance == p("which"))
    .values(open=LEFT)
    .returning(A.open)
)
_left = (
    select(A.acceptance, A.payload, A.created, T.target, T.payload, *rows.BLOB_COLUMNS)
    .join(ACCEPTANCE_TARGET, T.acceptance == A.acceptance)
    .join(BLOB, B.hash == A.hash)
    .where(
        A.open > 0,
        A.created <= p("before"),
        T.applied == 0,
        or_(
            A.created > p("seen"), and_(A.created == p("seen"), A.acceptance > p("key"))
        ),
    )
    .order_by(A.created, A.acceptance, T.target)
    .limit(p("count"))
)
PENDING = Sql(_left)
PENDING_OF = Sql(_left.where(T.target == p("at")))
TARGETS = Sql(select(T.target).where(T.applied == 0).distinct().order_by(T.target))


def accept(tx: Tx, _account: int, new: Acceptance) -> str:
    """Accept a message for several targets; returns the queue's id of its part.

    A second run with the same id changes nothing.
    """
    fresh = tx.run(
        INSERT,
        {
            "acceptance": new.acceptance_id,
            "hash": new.blob.hash,
            "payload": new.payload,
            "created": int(tx.now),
            "open": len(new.parts),
        },
    )
    if not fresh:
        return _queued(tx, new)
    rows.put_blob(tx, new.blob)
    tx.many(
        INSERT_TARGET,
        [
            {
                "acceptance": new.acceptance_id,
                "target": part.target,
                "payload": part.payload,
                "applied": 0,
            }
            for part in new.parts
        ],
    )
    return enqueue(tx, 0, new.queued) if new.queued is not None else ""


def _queued(tx: Tx, new: Acceptance) -> str:
    if new.queued is None:
        return ""
    row = tx.one(BY_KEY, {"key": new.queued.key})
    return queue_id(row[0]) if row else ""


def applied(tx: Tx, _account: int, args: tuple[bytes, tuple[str, ...]]) -> int:
    """Note that targets have their part; returns how many targets are left."""
    acceptance, targets = args
    now = int(tx.now)
    for target in targets:
        tx.run(APPLY, {"which": acceptance, "at": target, "now": now})
    row = tx.one(RECOUNT, {"which": acceptance})
    return row[0] if row else 0


def pending(tx: Tx, _account: int, args: Pending) -> tuple[PendingPart, ...]:
    """Return parts not applied, the oldest first."""
    params = {
        "before": args.before,
        "count": args.limit,
        "seen": args.after[0],
        "key": args.after[1],
    }
    if args.target:
        found = tx.all(PENDING_OF, {**params, "at": args.target})
    else:
        found = tx.all(PENDING, params)
    return tuple(
        PendingPart(
            row[0], BlobRef(*row[5:]), row[1], TargetPart(row[3], row[4]), row[2]
        )
        for row in found
    )


def waiting_targets(tx: Tx, _account: int, _args: None) -> tuple[str, ...]:
    """Return the targets that some part waits for."""
    return tuple(row[0] for row in tx.all(TARGETS))
