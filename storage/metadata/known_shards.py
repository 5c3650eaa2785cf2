"""Which databases the directory expects as shards: by UUID, and where they stood.

A shard that cannot be opened keeps its position by the name that it had last.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from storage.directory import LIVE
from storage.metadata.directory_tables import ACCOUNT, SHARD
from storage.metadata.sql import Sql, p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Tx

_s, _a = SHARD.c, ACCOUNT.c
_new = upsert(SHARD)
REMEMBER = Sql(
    _new.on_conflict_do_update(
        index_elements=["uuid"], set_={"name": _new.excluded.name}
    ),
    ("uuid", "name", "added"),
)
FREE_NAME = Sql(
    update(SHARD).where(_s.name == p("taken"), _s.uuid != p("by")).values(name="")
)
KNOWN = Sql(
    select(
        _s.uuid,
        _s.name,
        select(func.count())
        .where(_a.shard == _s.uuid, _a.state.in_(LIVE))
        .scalar_subquery(),
    ).order_by(_s.added, _s.name)
)


@dataclasses.dataclass(frozen=True, slots=True)
class KnownShard:
    """A shard that the directory expects; ``name`` as in ``Database.name``."""

    uuid: bytes
    name: str
    accounts: int


def known(tx: Tx, _account: int, _args: None) -> tuple[KnownShard, ...]:
    """Return the shards that the directory expects, with their accounts."""
    return tuple(KnownShard(*row) for row in tx.all(KNOWN))


def remember(tx: Tx, _account: int, shards: Sequence[tuple[bytes, str]]) -> None:
    """Expect these shards (UUID, name) from now on."""
    for uuid, name in shards:
        tx.run(FREE_NAME, {"taken": name, "by": uuid})
        tx.run(REMEMBER, {"uuid": uuid, "name": name, "added": int(tx.now)})
