"""How far each account is indexed: what a look over a shard's accounts compares.

One small row per account (``progress``) says up to which modseq the search index lacks
nothing.  It is a hint: an index says itself what it holds, and one that turns out to be
empty is fed again once its row is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from storage.metadata.common_tables import PROGRESS
from storage.metadata.sql import Sql, p
from storage.metadata.tables import ACCOUNT

if TYPE_CHECKING:
    from storage.api import Tx

PREFIX = "search:"
_a, _p = ACCOUNT.c, PROGRESS.c
_known = func.coalesce(_p.position, -1)
_named = _p.name == literal(PREFIX).concat(cast(_a.account_id, Text))
BEHIND = Sql(
    select(_a.account_id, _a.modseq, _known)
    .select_from(ACCOUNT.outerjoin(PROGRESS, _named))
    .where(_a.account_id > p("after"), _a.modseq > _known)
    .order_by(_a.account_id)
    .limit(p("n"))
)
_number = cast(func.substr(_p.name, len(PREFIX) + 1), BigInteger)
ORPHANS = Sql(
    select(_number)
    .where(
        and_(_p.name >= PREFIX, _p.name < "search;"),
        ~exists().where(_a.account_id == _number).correlate(PROGRESS),
    )
    .limit(p("n"))
)
_note = upsert(PROGRESS)
NOTE = Sql(
    _note.on_conflict_do_update(
        index_elements=["name"], set_={"position": _note.excluded.position}
    ),
    ("name", "position"),
)
FORGET = Sql(delete(PROGRESS).where(_p.name == p("name")))


def behind(tx: Tx, _: int, args: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
    """Return accounts that changed since they were indexed: (after id, limit).

    Each is (account, its modseq, the modseq it is indexed up to, -1 when never).
    """
    after, limit = args
    return tuple(
        (r[0], r[1], r[2]) for r in tx.all(BEHIND, {"after": after, "n": limit})
    )


def orphans(tx: Tx, _: int, limit: int) -> tuple[int, ...]:
    """Return accounts that were indexed and are no more."""
    return tuple(row[0] for row in tx.all(ORPHANS, {"n": limit}))


def note(tx: Tx, account: int, modseq: int) -> None:
    """Note that the index lacks nothing up to a modseq."""
    tx.run(NOTE, {"name": f"{PREFIX}{account}", "position": modseq})


def forget(tx: Tx, account: int, _: None) -> None:
    """Let the account be looked at again, or take the note of one that is gone."""
    tx.run(FORGET, {"name": f"{PREFIX}{account}"})
