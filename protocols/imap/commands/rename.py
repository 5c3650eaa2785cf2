"""RENAME (RFC 9051 section 6.3.6); INBOX stays and its messages move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.space()
    old = args.mailbox(utf8=context.modes.utf8)
    args.space()
    new = args.mailbox(utf8=context.modes.utf8).removesuffix("/")
    args.end()
    await context.services.mailboxes.rename_path(context.access, old, new)


COMMAND = Command("RENAME", AUTHENTICATED, _run)
