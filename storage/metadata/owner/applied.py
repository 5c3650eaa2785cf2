"""Units of other processes: each has a key, under which what it returned is kept in
the transaction of the unit itself until its sender has the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from mailserverd.core.pickles import dumps
from storage.metadata.common_tables import APPLIED
from storage.metadata.sql import Insert, Sql, heavy, p, several

if TYPE_CHECKING:
    from storage.api import Tx, Work

    Keyed = tuple[bytes, Work[Any, Any], Any, bool, tuple[bytes, bytes] | None]
    """(key, unit, its arguments, whether to look the key up first, range of keys
    [first, last) whose answers have arrived)."""

C = APPLIED.c
FIND = Sql(select(C.outcome).where(C.key == p("which")))
ADD = Insert(insert(APPLIED), ("key", "at", "outcome"))
FORGET = Sql(delete(APPLIED).where(C.key >= p("first"), C.key < p("last")))
PRUNE = Sql(delete(APPLIED).where(C.at < p("before")))


def keyed(tx: Tx, account: int, call: Keyed) -> bytes:
    """Run a unit under its key, at most once; returns its result, pickled."""
    key, work, args, look, answered = call
    if look:
        row = tx.one(FIND, {"which": key})
        if row is not None:
            return bytes(row[0])
    outcome = dumps(work(tx, account, args))
    if answered is not None:
        tx.run(FORGET, {"first": answered[0], "last": answered[1]})
    tx.run(ADD, (key, int(tx.now), outcome))
    return outcome


@heavy
def keyed_heavy(tx: Tx, account: int, call: Keyed) -> bytes:
    """As ``keyed``, for a unit that is ``heavy``."""
    return keyed(tx, account, call)


@several
def keyed_several(tx: Tx, account: int, call: Keyed) -> bytes:
    """As ``keyed``, for a unit that touches ``several`` accounts."""
    return keyed(tx, account, call)


def under_key(work: Work[Any, Any]) -> Work[Keyed, bytes]:
    """Return what runs ``work`` under its key, marked for the engine as it is."""
    if getattr(work, "heavy", False) is True:
        return keyed_heavy
    if getattr(work, "several", False) is True:
        return keyed_several
    return keyed


def prune(tx: Tx, _account: int, before: int) -> int:
    """Forget outcomes from before a time (seconds since the epoch); returns how many.

    Their senders are dead, or were answered and then silent.
    """
    return tx.run(PRUNE, {"before": before})
