"""Emails as lists show them (Email/get of a page), in one look."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from storage.metadata.accounts import STATE, found
from storage.metadata.messages import (
    SHOWN_IN,
    STATES,
    by_ids,
    make_flags,
    make_row,
    places_of,
)
from storage.metadata.sql import Sql, ids, inline, p
from storage.metadata.tables import EMAIL_STATE
from storage.model import AccountState, Column, EmailRow, Flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Tx

__all__ = ["Listed", "few", "read"]


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """A page of emails at one moment.

    ``states`` are (modseq, flags, mailboxes) of those that JMAP shows, ``rows`` of
    those among them that changed since the modseq that was asked for.
    """

    state: AccountState
    states: dict[int, tuple[int, Flags, tuple[int, ...]]]
    rows: dict[int, EmailRow]


@functools.cache
def _changed(columns: Column) -> Sql:
    return Sql(by_ids(columns).where(EMAIL_STATE.c.modseq > p("since")))


def read(tx: Tx, account: int, args: tuple[Sequence[int], Column, int]) -> Listed:
    """Return emails by id: (ids, columns, modseq since which rows are wanted)."""
    wanted, columns, since = args
    params = {"a": account, "emails": ids(wanted), "since": since}
    state, shown, states, rows = tx.each(
        (STATE, params),
        (SHOWN_IN, params),
        (STATES, params),
        (_changed(columns & ~Column.MAILBOXES), params),
    )
    places = places_of(shown)
    basic = bool(columns & Column.BASIC)
    return Listed(
        AccountState(*found(state[0] if state else None)),
        {
            key: (modseq, make_flags(system, words), places.get(key, ()))
            for key, modseq, system, words in states
        },
        {row[0]: make_row(row, places.get(row[0], ()), basic, 0) for row in rows},
    )


@inline
def few(tx: Tx, account: int, args: tuple[Sequence[int], Column, int]) -> Listed:
    """Do as ``read``, on the loop: for a page of about 50."""
    return read(tx, account, args)
