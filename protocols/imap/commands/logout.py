"""LOGOUT (RFC 9051 section 6.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import ANY, Event
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.end()
    context.send(b"* BYE Logging out\r\n")
    context.advance(Event.LOGOUT)


COMMAND = Command("LOGOUT", ANY, _run, news=False)
