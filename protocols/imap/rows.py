"""Rows of the messages of a batch: a range scan where that is dense, else by id."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocols.imap.extension import Context
    from protocols.imap.view import Batch
    from storage.model import Column, EmailRow

CHUNK = 500  # rows read by one hop
_SPARSE = 4  # a range scan may read this many rows per row wanted


async def load_rows(
    context: Context, batch: Batch, columns: Column, *, saved: bool = False
) -> list[EmailRow | None]:
    """Return the row of each message, None for one that is gone.

    ``saved``: with the date it came into this mailbox, which only a scan knows.
    """
    rows: list[EmailRow | None] = []
    for start in range(0, len(batch.uids), CHUNK):
        uids = batch.uids[start : start + CHUNK]
        if context.mailbox.span(uids[0], uids[-1]) <= _SPARSE * len(uids):
            found = await _scan(context, uids[0], uids[-1], columns)
            rows += [found.get(uid) for uid in uids]
        elif saved:
            for uid in uids:
                rows.append((await _scan(context, uid, uid, columns)).get(uid))
        else:
            ids = batch.email_ids[start : start + CHUNK]
            by_id = await context.services.messages.rows(context.access, ids, columns)
            rows += [by_id.get(email_id) for email_id in ids]
    return rows


async def _scan(
    context: Context, low: int, high: int, columns: Column
) -> dict[int, EmailRow]:
    mailbox = context.mailbox
    limit = max(mailbox.span(low, high), 1)
    return dict(
        await context.services.messages.page(
            context.access, mailbox.view.mailbox_id, low, high, columns, limit
        )
    )
