"""Columns of a mailbox's messages, as IMAP reads them: by uid, nothing unasked.

One statement per set of fields, made once: FETCH of ENVELOPE over 10,000 messages joins
two tables and returns pairs, where whole rows would join three and build objects.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, select

from mailserverd.core.errors import Kind, MailError
from storage.metadata.messages import BLOB_COLUMNS
from storage.metadata.sql import InIds, Sql, ids, inline, p
from storage.metadata.tables import BLOB, EMAIL, EMAIL_STATE, MAILBOX_EMAIL
from storage.model import BlobRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.api import Row, Tx

_me, _es, _e, _bl = MAILBOX_EMAIL.c, EMAIL_STATE.c, EMAIL.c, BLOB.c
FIELDS: dict[str, tuple[Any, ...]] = {
    "received_at": (_me.received_at,),
    "thread_id": (_me.thread_id,),
    "save_date": (_me.save_date,),
    "size": (_es.size,),
    "sent_at": (_es.sent_at,),
    "header_size": (_e.header_size,),
    "envelope": (_e.envelope,),
    "bodystructure": (_e.bodystructure,),
    "list_json": (_e.list_json,),
    "part_table": (_e.part_table,),
    "blob": (_e.hash, *BLOB_COLUMNS[1:]),
}
"""What may be asked for; ``blob`` comes as a ``BlobRef``."""
SPARSE = 4  # a range scan may pass this many uids per uid wanted


@functools.lru_cache(maxsize=256)
def _statement(fields: tuple[str, ...], *, dense: bool) -> Sql:
    columns = [column for field in fields for column in FIELDS[field]]
    tables = {column.table.name for column in columns}
    source: Any = MAILBOX_EMAIL
    if EMAIL_STATE.name in tables:
        on = and_(_es.account_id == _me.account_id, _es.email_id == _me.email_id)
        source = source.join(EMAIL_STATE, on)
    if EMAIL.name in tables:
        on = and_(_e.account_id == _me.account_id, _e.email_id == _me.email_id)
        source = source.join(EMAIL, on)
    if BLOB.name in tables:
        source = source.join(BLOB, _bl.hash == _e.hash)
    where = [_me.account_id == p("a"), _me.mailbox_id == p("box")]
    if dense:
        where += [_me.uid >= p("low"), _me.uid <= p("high")]
    else:
        where.append(InIds(_me.uid, "uids"))
    chosen = select(_me.uid, *columns).select_from(source)
    return Sql(chosen.where(*where).order_by(_me.uid))


def read(
    tx: Tx, account: int, args: tuple[int, Sequence[int], tuple[str, ...]]
) -> list[Row]:
    """Return (uid, field, ...) in uid order: (mailbox, ascending uids, fields).

    Uids that do not exist are left out; INVALID for an unknown field.
    """
    mailbox_id, uids, fields = args
    if not FIELDS.keys() >= set(fields):
        raise MailError(Kind.INVALID, "unknown field")
    if not uids:
        return []
    low, high = uids[0], uids[-1]
    params: dict[str, object] = {"a": account, "box": mailbox_id}
    dense = high - low < SPARSE * len(uids)
    params |= {"low": low, "high": high} if dense else {"uids": ids(uids)}
    rows = tx.all(_statement(fields, dense=dense), params)
    if dense and len(rows) > len(uids):
        wanted = frozenset(uids)
        rows = [row for row in rows if row[0] in wanted]
    return _with_blobs(rows, fields) if "blob" in fields else rows


def _with_blobs(rows: list[Row], fields: tuple[str, ...]) -> list[Row]:
    start = 1 + fields.index("blob")
    end = start + len(FIELDS["blob"])
    return [(*row[:start], BlobRef(*row[start:end]), *row[end:]) for row in rows]


@inline
def few(
    tx: Tx, account: int, args: tuple[int, Sequence[int], tuple[str, ...]]
) -> list[Row]:
    """Do as ``read``, on the loop: for a page of about 50."""
    return read(tx, account, args)
