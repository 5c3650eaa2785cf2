"""Who owns a blob: emails and uploads; what the collector may take and move.

Reading is decided by references, never by knowing a hash.  A blob's row exists as
long as its bytes do: the collector first removes rows that nobody owns, and only
later the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, exists, func, or_, select, union_all, update
from sqlalchemy.dialects.postgresql import insert as upsert

from mailserverd.core.errors import Kind, MailError
from storage.metadata.accounts import read_state
from storage.metadata.deliver import add_blob
from storage.metadata.messages import BLOB_COLUMNS
from storage.metadata.retired import open_to
from storage.metadata.sql import Sql, inline, p, total
from storage.metadata.tables import BLOB, BLOB_OWNER, EMAIL, OWNER_UPLOAD
from storage.model import BlobRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Tx

MAX_UPLOADS = 1000  # live ones of an account
MAX_UPLOAD_OCTETS = 1 << 30

_b, _e, _o = BLOB.c, EMAIL.c, BLOB_OWNER.c
MINE = Sql(
    union_all(
        select(_e.email_id).where(_e.hash == p("hash"), _e.account_id == p("a")),
        select(_o.owner_id).where(
            _o.hash == p("hash"),
            _o.account_id == p("a"),
            _o.kind == OWNER_UPLOAD,
            _o.expires > p("now"),
        ),
    ).limit(1)
)
_owner = upsert(BLOB_OWNER)
ADD_UPLOAD = Sql(
    _owner.on_conflict_do_update(
        index_elements=["hash", "account_id", "kind", "owner_id"],
        set_={"expires": _owner.excluded.expires},
    ),
    tuple(BLOB_OWNER.c.keys()),
)
UPLOADED = Sql(
    select(func.count(), total(_b.size))
    .select_from(BLOB_OWNER.join(BLOB, _o.hash == _b.hash))
    .where(_o.account_id == p("a"), _o.expires > 0, _o.expires > p("now"))
)
EXPIRED = Sql(
    select(_o.hash, _o.account_id, _o.kind, _o.owner_id)
    .where(_o.expires > 0, _o.expires <= p("now"))
    .limit(p("n"))
)
DROP_OWNER = Sql(
    delete(BLOB_OWNER).where(
        _o.hash == p("hash"),
        _o.account_id == p("a"),
        _o.kind == p("what"),
        _o.owner_id == p("owner"),
    )
)
DROP_KEPT = Sql(
    delete(BLOB_OWNER).where(
        _o.account_id == p("a"),
        _o.kind == OWNER_UPLOAD,
        exists().where(_e.hash == _o.hash, _e.account_id == p("a")),
    )
)
_owned = or_(
    exists().where(_e.hash == _b.hash).correlate(BLOB),
    exists().where(_o.hash == _b.hash).correlate(BLOB),
)
OWNED = Sql(select(*BLOB_COLUMNS).where(_b.hash == p("hash"), _owned))
PLACED = Sql(select(*BLOB_COLUMNS).where(_b.hash == p("hash")))
LISTED = Sql(
    select(*BLOB_COLUMNS).where(_b.hash > p("after")).order_by(_b.hash).limit(p("n"))
)
FORGET = Sql(delete(BLOB).where(_b.hash == p("hash"), ~_owned))
BLOBLESS = Sql(
    select(_e.hash)
    .where(~exists().where(_b.hash == _e.hash).correlate(EMAIL))
    .distinct()
    .limit(p("n"))
)
DROP_HOMELESS = Sql(
    delete(BLOB_OWNER).where(~exists().where(_b.hash == _o.hash).correlate(BLOB_OWNER))
)
MOVE = Sql(
    update(BLOB)
    .where(
        _b.hash == p("of"),
        and_(_b.segment == p("old_segment"), _b.offset == p("old_offset")),
        open_to(p("to_segment")),
    )
    .values(
        store=p("to_store"),
        segment=p("to_segment"),
        offset=p("to_offset"),
        length=p("to_length"),
        codec=p("to_codec"),
        key=p("to_key"),
    )
)


@inline
def find_blob(tx: Tx, account: int, blob_hash: bytes) -> BlobRef:
    """Return a blob that an email or a live upload of the account refers to.

    NOT_FOUND for any other, whether it exists or not: only the account's own
    references are looked at, so that not even the time tells.
    """
    params = {"a": account, "hash": blob_hash, "now": int(tx.now)}
    row = tx.one(PLACED, {"hash": blob_hash}) if tx.one(MINE, params) else None
    if row is None:
        raise MailError(Kind.NOT_FOUND, "no such blob")
    return BlobRef(*row)


@inline
def has_room(tx: Tx, account: int, octets: int) -> bool:
    """Return whether the account may upload so many octets now."""
    used = tx.one(UPLOADED, {"a": account, "now": int(tx.now)})
    count, size = used or (0, 0)
    return bool(count < MAX_UPLOADS and size + octets <= MAX_UPLOAD_OCTETS)


def forget_kept(tx: Tx, account: int, _: object) -> None:
    """Let go of the account's uploads that emails of its own have, too."""
    tx.run(DROP_KEPT, {"a": account})


def add_upload(tx: Tx, account: int, args: tuple[BlobRef, int]) -> BlobRef:
    """Own an uploaded blob for some seconds: (ref, seconds) -> where it lies.

    LIMIT when the account holds too many uploads or octets of them, UNAVAILABLE when
    its segment was retired before this came.
    """
    blob, seconds = args
    read_state(tx, account)
    if not has_room(tx, account, blob.size):
        raise MailError(Kind.LIMIT, "too many uploads")
    add_blob(tx, blob)
    tx.run(
        ADD_UPLOAD,
        {
            "hash": blob.hash,
            "account_id": account,
            "kind": OWNER_UPLOAD,
            "owner_id": 0,
            "expires": int(tx.now) + seconds,
        },
    )
    row = tx.one(OWNED, {"hash": blob.hash})
    return BlobRef(*row) if row else blob


def expire_uploads(tx: Tx, _: int, limit: int) -> int:
    """Forget up to ``limit`` uploads of the shard whose time has come."""
    rows = tx.all(EXPIRED, {"now": int(tx.now), "n": limit})
    tx.many(
        DROP_OWNER,
        [
            {"hash": row[0], "a": row[1], "what": row[2], "owner": row[3]}
            for row in rows
        ],
    )
    return len(rows)


def placed_blobs(tx: Tx, _: int, hashes: Sequence[bytes]) -> dict[bytes, BlobRef]:
    """Return where rows place these blobs, owned or not: an unowned row may be owned
    again by the next message with the same content, so its bytes must stay."""
    rows = (tx.one(PLACED, {"hash": blob_hash}) for blob_hash in hashes)
    return {row[0]: BlobRef(*row) for row in rows if row is not None}


def list_blobs(tx: Tx, _: int, args: tuple[bytes, int]) -> tuple[BlobRef, ...]:
    """Return all blobs in order of hash: (after, limit)."""
    after, limit = args
    rows = tx.all(LISTED, {"after": after, "n": limit})
    return tuple(BlobRef(*row) for row in rows)


def forget_blobs(tx: Tx, _: int, hashes: Sequence[bytes]) -> tuple[bytes, ...]:
    """Remove the rows of those blobs that nobody owns; returns their hashes.

    From then on a message with the same content brings its own record, and the
    bytes may be removed once no reader holds the old address.
    """
    return tuple(key for key in hashes if tx.run(FORGET, {"hash": key}))


def blobless(tx: Tx, _: int, limit: int) -> tuple[bytes, ...]:
    """Return hashes of blobs that emails name and the shard has no row for."""
    return tuple(row[0] for row in tx.all(BLOBLESS, {"n": limit}))


def restore_blobs(tx: Tx, _: int, blobs: Sequence[BlobRef]) -> None:
    """Make rows for blobs that were found in their segments."""
    for blob in blobs:
        add_blob(tx, blob)


def drop_homeless(tx: Tx, _: int, __: None) -> int:
    """Forget uploads whose blob has no row; returns how many."""
    return tx.run(DROP_HOMELESS)


def move_blobs(tx: Tx, _: int, moves: Sequence[tuple[BlobRef, BlobRef]]) -> int:
    """Let rows that point at the first of each pair point at the second, unless that
    lies in a retired segment; returns how many."""
    return sum(tx.run(MOVE, _move(old, new)) for old, new in moves)


def _move(old: BlobRef, new: BlobRef) -> dict[str, Any]:
    return {
        "of": old.hash,
        "old_segment": old.segment,
        "old_offset": old.offset,
        "to_store": new.store,
        "to_segment": new.segment,
        "to_offset": new.offset,
        "to_length": new.length,
        "to_codec": new.codec,
        "to_key": new.key,
    }
