"""Threads: which emails they hold (RFC 8621 section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from storage.metadata.sql import InIds, Sql, ids, inline, p
from storage.metadata.tables import EMAIL_STATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Tx

_es = EMAIL_STATE.c
_shown = select(_es.thread_id, _es.email_id).where(
    _es.account_id == p("a"), InIds(_es.thread_id, "threads"), _es.shown > 0
)
EMAILS = Sql(_shown.order_by(_es.received_at, _es.email_id))
SOME = Sql(_shown.limit(p("n")))
MANY = 500  # emails that are too many for the loop


def read(tx: Tx, account: int, wanted: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return the shown emails of threads, oldest first; empty ones are left out."""
    found: dict[int, list[int]] = {}
    for thread, email in tx.all(EMAILS, {"a": account, "threads": ids(wanted)}):
        found.setdefault(thread, []).append(email)
    return {key: tuple(found[key]) for key in wanted if key in found}


@inline
def few(
    tx: Tx, account: int, wanted: Sequence[int]
) -> dict[int, tuple[int, ...]] | None:
    """Do as ``read``, on the loop; None when the threads hold many emails."""
    params = {"a": account, "threads": ids(wanted), "n": MANY}
    if len(tx.all(SOME, params)) == MANY:
        return None
    return read(tx, account, wanted)
