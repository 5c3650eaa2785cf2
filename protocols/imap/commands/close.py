"""CLOSE (RFC 9051 section 6.4.1): expunge silently, then leave the mailbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import SELECTED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.end()
    selected = context.mailbox
    if not selected.read_only:
        await context.services.messages.expunge(
            context.access, selected.view.mailbox_id, None
        )
    context.unselect()


COMMAND = Command("CLOSE", SELECTED, _run, news=False)
