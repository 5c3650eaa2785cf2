"""CHECK (RFC 3501 section 6.4.1): a checkpoint; everything already is durable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import SELECTED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.end()
    await context.refresh()


COMMAND = Command("CHECK", SELECTED, _run)
