"""Forgetting what is old: tombstones, applied acceptances, keys of dead threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, exists, func, select, update

from storage.metadata.accounts import read_floor
from storage.metadata.sql import Sql, heavy, p
from storage.metadata.tables import (
    ACCOUNT,
    DELIVERED,
    DESTROYED,
    EMAIL_STATE,
    EXPUNGED,
    THREAD_KEY,
)

if TYPE_CHECKING:
    from storage.api import Tx

DAY = 86_400
TOMBSTONE_DAYS = 30
DELIVERED_DAYS = 7

_a, _d, _k, _es = ACCOUNT.c, DELIVERED.c, THREAD_KEY.c, EMAIL_STATE.c
OLDEST, DROP = (
    {table.name: Sql(make(table)) for table in (EXPUNGED, DESTROYED)}
    for make in (
        lambda table: select(func.max(table.c.modseq)).where(
            table.c.account_id == p("a"), table.c.at < p("before")
        ),
        lambda table: delete(table).where(
            table.c.account_id == p("a"), table.c.modseq <= p("floor")
        ),
    )
)
SET_FLOOR = Sql(
    update(ACCOUNT).where(_a.account_id == p("a")).values(tombstone_floor=p("floor"))
)
ACCOUNTS = Sql(
    select(_a.account_id)
    .where(_a.account_id > p("after"))
    .order_by(_a.account_id)
    .limit(p("n"))
)
FORGET = Sql(delete(DELIVERED).where(_d.at < p("before")))
DEAD_KEYS = Sql(
    delete(THREAD_KEY).where(
        _k.account_id == p("a"),
        ~exists()
        .where(_es.account_id == _k.account_id, _es.thread_id == _k.thread_id)
        .correlate(THREAD_KEY),
    )
)


def account_ids(tx: Tx, _: int, args: tuple[int, int]) -> tuple[int, ...]:
    """Return ids of the shard's accounts in order: (after, limit)."""
    rows = tx.all(ACCOUNTS, {"after": args[0], "n": args[1]})
    return tuple(row[0] for row in rows)


@heavy
def prune_account(tx: Tx, account: int, days: int = TOMBSTONE_DAYS) -> int:
    """Remove tombstones older than ``days`` and keys of threads that are gone.

    From then on changes since before the last of them cannot be calculated: the
    account remembers that floor, which is returned.
    """
    floor, _ = read_floor(tx, account)
    params = {"a": account, "before": int(tx.now) - days * DAY}
    for oldest in OLDEST.values():
        row = tx.one(oldest, params)
        floor = max(floor, (row[0] if row else 0) or 0)
    for drop in DROP.values():
        tx.run(drop, {"a": account, "floor": floor})
    tx.run(SET_FLOOR, {"a": account, "floor": floor})
    tx.run(DEAD_KEYS, {"a": account})
    return floor


@heavy
def forget_delivered(tx: Tx, _: int, days: int = DELIVERED_DAYS) -> int:
    """Forget acceptances of all accounts that were applied ``days`` ago."""
    return tx.run(FORGET, {"before": int(tx.now) - days * DAY})
