"""STATUS (RFC 9051 section 6.3.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap import listing
from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.space()
    path = args.mailbox(utf8=context.modes.utf8)
    args.space()
    items = args.group(lambda: listing.status_item(args))
    args.end()
    mailbox = await context.find(path)
    listing.note_status(context, items)
    context.send(await listing.status_line(context, mailbox, items))


COMMAND = Command("STATUS", AUTHENTICATED, _run)
