"""MOVE and UID MOVE (RFC 9051 section 6.4.8, RFC 6851).

COPYUID comes untagged, before the EXPUNGE responses (RFC 6851 section 4.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import SELECTED
from protocols.imap.copying import transfer
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _move(context: Context, args: Cursor) -> bytes | None:
    return await _run(context, args, uid=False)


async def _uid_move(context: Context, args: Cursor) -> bytes | None:
    return await _run(context, args, uid=True)


async def _run(context: Context, args: Cursor, *, uid: bool) -> bytes | None:
    context.require_writable()
    code = await transfer(context, args, context.services.messages.move, uid=uid)
    if code is None:
        return None
    context.send(b"* OK %b Moved\r\n" % code)
    await context.refresh()
    if context.modes.condstore:
        told = context.mailbox.view.highestmodseq
        return b"[HIGHESTMODSEQ %d] MOVE completed" % told
    return None


MOVE = Command("MOVE", SELECTED, _move)
UID_MOVE = Command("UID MOVE", SELECTED, _uid_move)
