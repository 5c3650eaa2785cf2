"""COPY and UID COPY (RFC 9051 section 6.4.7), with COPYUID (RFC 4315)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import SELECTED
from protocols.imap.copying import transfer
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _copy(context: Context, args: Cursor) -> bytes | None:
    return await _run(context, args, uid=False)


async def _uid_copy(context: Context, args: Cursor) -> bytes | None:
    return await _run(context, args, uid=True)


async def _run(context: Context, args: Cursor, *, uid: bool) -> bytes | None:
    code = await transfer(context, args, context.services.messages.copy, uid=uid)
    return code and code + b" COPY completed"


COPY = Command("COPY", SELECTED, _copy)
UID_COPY = Command("UID COPY", SELECTED, _uid_copy)
