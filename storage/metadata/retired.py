"""Segments taken out of use: a fence that every database keeps for itself.

A blob's bytes are written before the row that owns them.  Between the two any time
may pass (a stopped machine, a clock that is set), so no age says that nobody will
still commit a row for a record.  The fence does: the collector writes a segment's
number into every database; from that commit on no row can point into the segment
there.  A row that came in earlier is seen when the database is read afterwards.  So
what nobody needs then, nobody will ever need.

Every statement that lets a row point somewhere asks ``open_to``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, LargeBinary, cast, delete, exists, select
from sqlalchemy.dialects.postgresql import insert as upsert

from mailserverd.core.errors import Kind, MailError
from storage.metadata.common_tables import PROGRESS, RETIRED
from storage.metadata.sql import Sql, p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.dialects.postgresql import Insert

    from storage.api import Tx

_r, _p = RETIRED.c, PROGRESS.c
RETIRE = Sql(upsert(RETIRED).on_conflict_do_nothing(), ("segment", "at"))
SINCE = Sql(select(_r.at).where(_r.segment == p("which")))
LISTED = Sql(
    select(_r.segment).where(_r.segment > p("after")).order_by(_r.segment).limit(p("n"))
)
FORGET = Sql(delete(RETIRED).where(_r.segment == p("which"), _r.at < p("before")))
_progress = upsert(PROGRESS)
GO_ON = Sql(
    _progress.on_conflict_do_update(
        index_elements=["name"], set_={"position": _progress.excluded.position}
    ),
    ("name", "position"),
)
POSITION = Sql(select(_p.position).where(_p.name == p("which")))


def open_to(segment: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that rows may point into ``segment``."""
    return ~exists().where(_r.segment == segment)


def insert_open(table: Table) -> Insert:
    """Return an INSERT of one row of a ``blob`` table, its columns bound in order,
    that does nothing when the row's segment is retired."""
    types = {"hash": LargeBinary, "store": LargeBinary}
    new = select(
        *(cast(p(c.name), types.get(c.name, BigInteger)).label(c.name) for c in table.c)
    ).subquery("new")
    return upsert(table).from_select(
        list(table.c.keys()), select(new).where(open_to(new.c.segment))
    )


def gone() -> MailError:
    """Return what a writer is told whose bytes were given up meanwhile."""
    return MailError(Kind.UNAVAILABLE, "took too long: the message has to come again")


def retire(tx: Tx, _: int, segments: Sequence[int]) -> None:
    """Let no row of this database point into these segments from now on."""
    now = int(tx.now)
    tx.many(RETIRE, [{"segment": number, "at": now} for number in segments])


def retired_since(tx: Tx, _: int, segments: Sequence[int]) -> dict[int, int]:
    """Return since when those of the segments that are retired are so."""
    found = ((n, tx.one(SINCE, {"which": n})) for n in segments)
    return {number: row[0] for number, row in found if row is not None}


def list_retired(tx: Tx, _: int, args: tuple[int, int]) -> tuple[int, ...]:
    """Return a page of retired segments' numbers: (after, limit)."""
    after, limit = args
    return tuple(row[0] for row in tx.all(LISTED, {"after": after, "n": limit}))


def forget_retired(tx: Tx, _: int, args: tuple[Sequence[int], int]) -> None:
    """Drop fences older than a time: (segments that are no more, before)."""
    segments, before = args
    tx.many(FORGET, [{"which": number, "before": before} for number in segments])


def position(tx: Tx, _: int, name: str) -> int:
    """Return where a piece of background work goes on; 0: at the start."""
    row = tx.one(POSITION, {"which": name})
    return row[0] if row else 0


def set_position(tx: Tx, _: int, args: tuple[str, int]) -> None:
    """Note where a piece of background work goes on: (name, position)."""
    name, number = args
    tx.run(GO_ON, {"name": name, "position": number})
