"""Removing everything that a shard holds of an account that is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, select, tuple_

from storage.metadata.sql import Sql, heavy, p
from storage.metadata.tables import ACCOUNT, SHARD

if TYPE_CHECKING:
    from sqlalchemy import Table

    from storage.api import Tx


def _delete_some(table: Table) -> Sql:
    """DELETE the first rows of an account, as many as ``count``, by primary key."""
    keys = tuple(table.primary_key.columns)
    some = select(*keys).where(table.c.account_id == p("account")).limit(p("count"))
    return Sql(delete(table).where(tuple_(*keys).in_(some)))


STATEMENTS = tuple(
    _delete_some(table)
    for table in sorted(SHARD.tables.values(), key=lambda t: t is not ACCOUNT)
    if "account_id" in table.c
)
"""The account's row first: from then on every unit finds no such account."""


@heavy
def purge_account(tx: Tx, account: int, limit: int) -> int:
    """Delete up to ``limit`` rows of each table; returns how many went (0: none left).

    Blobs that nobody owns any more are the collector's.
    """
    return sum(
        tx.run(statement, {"account": account, "count": limit})
        for statement in STATEMENTS
    )
