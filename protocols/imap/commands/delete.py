"""DELETE (RFC 9051 section 6.3.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.space()
    path = args.mailbox(utf8=context.modes.utf8)
    args.end()
    mailbox = await context.find(path)
    selected = context.selected
    if selected is not None and selected.view.mailbox_id == mailbox.mailbox_id:
        context.unselect()
        context.send(b"* OK [CLOSED] The selected mailbox is being deleted\r\n")
    await context.services.mailboxes.destroy(
        context.access, mailbox.mailbox_id, remove_emails=True
    )


COMMAND = Command("DELETE", AUTHENTICATED, _run)
