"""Stored values of the messages of a batch, by column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from protocols.imap.extension import Context
    from protocols.imap.view import Batch

CHUNK = 500  # messages read by one hop


async def load(
    context: Context, batch: Batch, fields: tuple[str, ...]
) -> tuple[Batch, Mapping[str, Sequence[Any]]]:
    """Return the fields' columns; the batch is cut to messages that still exist.

    Fields are those of ``Messages.columns``; at most ``CHUNK`` messages at once.
    """
    rows = await context.services.messages.columns(
        context.access, context.mailbox.view.mailbox_id, batch.uids, fields
    )
    if len(rows) < len(batch.uids):
        here = {row[0] for row in rows}
        batch = batch.pick(i for i, uid in enumerate(batch.uids) if uid in here)
    if not rows:
        return batch, dict.fromkeys(fields, ())
    _, *columns = zip(*rows, strict=True)
    return batch, dict(zip(fields, columns, strict=True))
