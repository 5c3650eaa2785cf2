"""Emails in order of date, read from an index as far as they are wanted.

A mailbox's index, or that of all mail, brings ids in order; with ``facts`` each row is
joined with what filters compare.  Chunks begin where the last one ended, so a page
costs the same in a mailbox of a million.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, and_, bindparam, func, select, tuple_

from storage.metadata.sql import Sql, p
from storage.metadata.tables import EMAIL_STATE, MAILBOX_EMAIL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.api import Row, Tx

FIRST = 100  # rows of the first chunk; each is twice the one before
MOST = 2000
LOWEST, HIGHEST = -(1 << 62), 1 << 62  # dates that no email has

_me, _es = MAILBOX_EMAIL.c, EMAIL_STATE.c
FACTS = (
    _es.thread_id,
    _es.received_at,
    _es.sent_at,
    _es.size,
    _es.has_attachment,
    _es.system,
    _es.keywords,
)
_flags = _es.system.op("&")(p("mask")) == p("bits")
_joined = and_(_es.account_id == _me.account_id, _es.email_id == _me.email_id)
_in_box = (_me.account_id == p("a"), _me.mailbox_id == p("box"), _me.deleted == 0)
_all_mail = (_es.account_id == p("a"), _es.shown > 0)
_BOXES = {"box": _in_box, "unseen": (*_in_box, _me.unseen == 1)}


def _statement(place: str, *, facts: bool, ascending: bool) -> Sql:
    """Return rows (email id, thread id, date ...) after a (date, email id)."""
    c: Any = _es if place == "all" else _me
    where = [*(_all_mail if place == "all" else _BOXES[place])]
    start: Any = EMAIL_STATE if place == "all" else MAILBOX_EMAIL
    columns: tuple[Any, ...] = (c.thread_id, c.received_at)
    if facts:
        columns = FACTS
        where.append(_flags)
        if place != "all":
            start = MAILBOX_EMAIL.join(EMAIL_STATE, _joined)
    here = tuple_(c.received_at, c.email_id)
    last = tuple_(*(bindparam(name, type_=BigInteger) for name in ("at", "after")))
    order = (c.received_at, c.email_id)
    if ascending:
        where += [here > last, c.received_at < p("end")]
    else:
        where += [here < last, c.received_at >= p("end")]
        order = tuple(column.desc() for column in order)
    found = select(c.email_id, *columns).select_from(start).where(*where)
    return Sql(found.order_by(*order).limit(p("n")))


WALK = {
    (place, facts, ascending): _statement(place, facts=facts, ascending=ascending)
    for place in ("all", "box", "unseen")
    for facts in (False, True)
    for ascending in (False, True)
}
HIDDEN = Sql(
    select(func.count())
    .select_from(EMAIL_STATE)
    .where(_es.account_id == p("a"), _es.shown == 0)
)
THREADS = Sql(select(func.count(_es.thread_id.distinct())).where(*_all_mail))
COUNT = Sql(
    select(func.count())
    .select_from(EMAIL_STATE)
    .where(*_all_mail, _es.received_at >= p("low"), _es.received_at < p("high"), _flags)
)


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """Which emails in which order: all mail, or a mailbox, or what is unseen there.

    ``facts`` rows have the columns of ``query_filter``, others the first three.
    """

    box: int | None
    unseen: bool
    ascending: bool
    facts: bool
    low: int = LOWEST
    high: int = HIGHEST
    mask: int = 0
    bits: int = 0

    def statement(self) -> Sql:
        """Return the statement of one chunk."""
        place = "all" if self.box is None else "unseen" if self.unseen else "box"
        return WALK[place, self.facts, self.ascending]


def beginning(way: Way, account: int, count: int) -> tuple[Sql, dict[str, object]]:
    """Return the statement of the first ``count`` rows, and its parameters."""
    return way.statement(), {
        "a": account,
        "box": way.box,
        "mask": way.mask,
        "bits": way.bits,
        "end": way.high if way.ascending else way.low,
        "at": way.low if way.ascending else way.high,
        "after": 0,
        "n": count,
    }


def walk(tx: Tx, account: int, way: Way, first: int = FIRST) -> Iterator[list[Row]]:
    """Yield chunks of rows in order; ties by id, in the direction of the dates."""
    count = first
    statement, params = beginning(way, account, count)
    while True:
        rows = tx.all(statement, {**params, "n": count})
        yield rows
        if len(rows) < count:
            return
        params |= {"at": rows[-1][2], "after": rows[-1][0]}
        count = min(2 * count, MOST)
