r"""EXPUNGE (RFC 9051 section 6.4.3) and UID EXPUNGE (RFC 4315 section 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import SELECTED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from array import array

    from protocols.imap.wire.cursor import Cursor


async def _expunge(context: Context, args: Cursor) -> bytes | None:
    args.end()
    return await _remove(context, None)


async def _uid_expunge(context: Context, args: Cursor) -> bytes | None:
    args.space()
    wanted = args.sequence_set()
    args.end()
    selected = context.writable
    return await _remove(context, selected.uids_of(selected.resolve(wanted, uid=True)))


async def _remove(context: Context, uids: array[int] | None) -> bytes | None:
    """Remove; the news before the tagged reply hold the EXPUNGE responses."""
    selected = context.writable
    removed, modseq = await context.services.messages.expunge(
        context.access, selected.view.mailbox_id, uids
    )
    await context.refresh()
    if removed and context.modes.condstore:  # RFC 7162 section 3.2.7
        return b"[HIGHESTMODSEQ %d] EXPUNGE completed" % modseq
    return None


EXPUNGE = Command("EXPUNGE", SELECTED, _expunge)
UID_EXPUNGE = Command("UID EXPUNGE", SELECTED, _uid_expunge)
