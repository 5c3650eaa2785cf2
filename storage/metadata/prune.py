"""Forgetting what is old: tombstones, applied acceptances, keys of dead threads.

Each unit does a piece and says whether there is more, so that deliveries never wait
for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, exists, func, select, tuple_, update

from storage.metadata.accounts import read_floor
from storage.metadata.sql import InIds, Sql, heavy, ids, inline, p
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
PIECE = 5000  # rows deleted, or keys looked at, by one unit

_a, _d, _k, _es = ACCOUNT.c, DELIVERED.c, THREAD_KEY.c, EMAIL_STATE.c


def _oldest(table: Any) -> Sql:
    mine = (table.c.account_id == p("a"), table.c.at < p("before"))
    return Sql(select(func.max(table.c.modseq)).where(*mine))


def _drop(table: Any) -> Sql:
    keys = tuple(table.primary_key.columns)
    old = (table.c.account_id == p("a"), table.c.modseq <= p("floor"))
    return Sql(
        delete(table).where(tuple_(*keys).in_(select(*keys).where(*old).limit(PIECE)))
    )


OLDEST = {table.name: _oldest(table) for table in (EXPUNGED, DESTROYED)}
DROP = {table.name: _drop(table) for table in (EXPUNGED, DESTROYED)}
SET_FLOOR = Sql(
    update(ACCOUNT).where(_a.account_id == p("a")).values(tombstone_floor=p("floor"))
)
ACCOUNTS = Sql(
    select(_a.account_id)
    .where(_a.account_id > p("after"))
    .order_by(_a.account_id)
    .limit(p("n"))
)
LAST_ACCOUNT = Sql(select(func.max(_a.account_id)))
LATEST = Sql(
    select(_d.at).where(_d.at < p("before")).order_by(_d.at).limit(1).offset(PIECE)
)
FORGET = Sql(delete(DELIVERED).where(_d.at < p("before")))
KEYS = Sql(
    select(
        _k.key,
        exists()
        .where(_es.account_id == _k.account_id, _es.thread_id == _k.thread_id)
        .correlate(THREAD_KEY),
    )
    .where(_k.account_id == p("a"), _k.key > p("after"))
    .order_by(_k.key)
    .limit(PIECE)
)
DROP_KEYS = Sql(
    delete(THREAD_KEY).where(_k.account_id == p("a"), InIds(_k.key, "keys"))
)
FIRST_KEY = -(1 << 63)


def account_ids(tx: Tx, _: int, args: tuple[int, int]) -> tuple[int, ...]:
    """Return ids of the shard's accounts in order: (after, limit)."""
    rows = tx.all(ACCOUNTS, {"after": args[0], "n": args[1]})
    return tuple(row[0] for row in rows)


@inline
def last_account(tx: Tx, _: int, __: None) -> int:
    """Return the greatest id of the shard's accounts; 0 when it has none."""
    row = tx.one(LAST_ACCOUNT)
    return (row[0] if row else 0) or 0


@heavy
def prune_tombstones(tx: Tx, account: int, days: int = TOMBSTONE_DAYS) -> bool:
    """Remove tombstones older than ``days``; returns whether there are more.

    From then on changes since before the last of them cannot be calculated: the
    account remembers that floor from the first piece on.
    """
    floor, _ = read_floor(tx, account)
    params = {"a": account, "before": int(tx.now) - days * DAY}
    for oldest in OLDEST.values():
        row = tx.one(oldest, params)
        floor = max(floor, (row[0] if row else 0) or 0)
    tx.run(SET_FLOOR, {"a": account, "floor": floor})
    gone = [tx.run(drop, {"a": account, "floor": floor}) for drop in DROP.values()]
    return max(gone) == PIECE


@heavy
def prune_keys(tx: Tx, account: int, after: int = FIRST_KEY) -> int | None:
    """Remove keys of threads that are gone; returns the key to go on after."""
    rows = tx.all(KEYS, {"a": account, "after": after})
    dead = [key for key, living in rows if not living]
    if dead:
        tx.run(DROP_KEYS, {"a": account, "keys": ids(dead)})
    return rows[-1][0] if len(rows) == PIECE else None


@heavy
def forget_delivered(tx: Tx, _: int, days: int = DELIVERED_DAYS) -> int:
    """Forget acceptances of all accounts that were applied ``days`` ago.

    Returns how many rows went; 0 when none are left.
    """
    before = int(tx.now) - days * DAY
    row = tx.one(LATEST, {"before": before})
    return tx.run(FORGET, {"before": row[0] + 1 if row else before})
