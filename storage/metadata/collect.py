"""What the collector asks of a shard's blobs, a page at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import case, exists, func, or_, select

from storage.metadata.messages import BLOB_COLUMNS
from storage.metadata.sql import Sql, p
from storage.metadata.tables import BLOB, BLOB_OWNER, EMAIL
from storage.model import BlobRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Tx

_b, _e, _o = BLOB.c, EMAIL.c, BLOB_OWNER.c
_mail = exists().where(_e.hash == _b.hash).correlate(BLOB)
_other = exists().where(_o.hash == _b.hash)
_lasting = or_(_o.expires == 0, _o.expires > p("now"))
LOOKED_AT = Sql(
    select(_b.hash, case((or_(_mail, _other.correlate(BLOB)), 1), else_=0))
    .where(_b.hash > p("after"))
    .order_by(_b.hash)
    .limit(p("n"))
)
KEPT = Sql(
    select(*BLOB_COLUMNS).where(
        _b.hash == p("hash"), or_(_mail, _other.where(_lasting).correlate(BLOB))
    )
)
OVERDUE = Sql(select(func.count()).where(_o.expires > 0, _o.expires <= p("now")))


def unowned(tx: Tx, _: int, args: tuple[bytes, int]) -> tuple[bytes, tuple[bytes, ...]]:
    """Look at the next blobs in order of hash: (after, how many).

    Returns the last one's hash (b"": there are no more), and those nobody owns.
    """
    after, count = args
    rows = tx.all(LOOKED_AT, {"after": after, "n": count})
    free = tuple(row[0] for row in rows if not row[1])
    return (rows[-1][0] if rows else b""), free


def kept_blobs(tx: Tx, _: int, hashes: Sequence[bytes]) -> dict[bytes, BlobRef]:
    """Return where those of the blobs lie that a collection would leave: an email
    has them, or an upload whose time has not come."""
    now = int(tx.now)
    rows = (tx.one(KEPT, {"hash": key, "now": now}) for key in hashes)
    return {row[0]: BlobRef(*row) for row in rows if row is not None}


def overdue_uploads(tx: Tx, _: int, __: object) -> int:
    """Return how many uploads would be forgotten now."""
    row = tx.one(OVERDUE, {"now": int(tx.now)})
    return row[0] if row else 0
