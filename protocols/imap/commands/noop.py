"""NOOP (RFC 9051 section 6.1.2): asks for news, always from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import ANY
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.end()
    await context.refresh()


COMMAND = Command("NOOP", ANY, _run)
