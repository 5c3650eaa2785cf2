"""Units for leases: which process does a piece of background work.

Time is the database's own where it has one for all its clients (PostgreSQL); a SQLite
file is written on one machine, whose clock it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, bindparam, case, or_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import Double

from storage.metadata.common_tables import LEASE
from storage.metadata.sql import Sql, p

if TYPE_CHECKING:
    from storage.api import Tx


class Now(ColumnElement[float]):
    """Seconds since the epoch; a unit binds its own as ``now``, used on SQLite."""

    inherit_cache = False
    type = Double()


@compiles(Now)
def _now_bound(_element: Now, _compiler: Any, **_kwargs: Any) -> str:
    return ":now"


@compiles(Now, "postgresql")
def _now_postgresql(_element: Now, _compiler: Any, **_kwargs: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


L = LEASE.c
NEW = upsert(LEASE).values(
    name=p("name"),
    owner=p("owner"),
    term=1,
    until=Now() + bindparam("seconds", type_=Double()),
)
TAKE = Sql(
    NEW.on_conflict_do_update(
        index_elements=["name"],
        set_={
            "owner": NEW.excluded.owner,
            "term": case((L.owner == NEW.excluded.owner, L.term), else_=L.term + 1),
            "until": NEW.excluded.until,
        },
        where=or_(L.owner == NEW.excluded.owner, L.until < Now()),
    ).returning(L.term)
)
END = Sql(
    LEASE.update()
    .where(L.name == p("which"), L.owner == p("who"))
    .values(until=0, owner=b"")
)


def take(tx: Tx, _account: int, args: tuple[str, bytes, float]) -> int | None:
    """Take or renew a lease (name, owner, seconds); returns its term.

    None when another owner has it.  The term grows whenever the owner changes, and
    never returns to an earlier one: it tells a late message of an earlier owner.
    """
    name, owner, seconds = args
    bound = {"name": name, "owner": owner, "seconds": seconds, "now": tx.now}
    row = tx.one(TAKE, bound)
    return None if row is None else row[0]


def release(tx: Tx, _account: int, args: tuple[str, bytes]) -> bool:
    """Give a lease (name, owner) back; False when another owner has it by now."""
    name, owner = args
    return bool(tx.run(END, {"which": name, "who": owner}))
