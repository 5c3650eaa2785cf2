"""CAPABILITY (RFC 9051 section 6.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import ANY
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.end()
    context.send(b"* CAPABILITY %b\r\n" % context.capabilities())


COMMAND = Command("CAPABILITY", ANY, _run)
