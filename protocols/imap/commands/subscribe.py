"""SUBSCRIBE and UNSUBSCRIBE (RFC 9051 sections 6.3.7 and 6.3.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _subscribe(context: Context, args: Cursor) -> None:
    path = _path(context, args)
    await context.find(path)
    await context.services.mailboxes.subscribe(context.access, path, on=True)


async def _unsubscribe(context: Context, args: Cursor) -> None:
    path = _path(context, args)
    await context.services.mailboxes.subscribe(context.access, path, on=False)


def _path(context: Context, args: Cursor) -> str:
    args.space()
    path = args.mailbox(utf8=context.modes.utf8)
    args.end()
    return path


SUBSCRIBE = Command("SUBSCRIBE", AUTHENTICATED, _subscribe)
UNSUBSCRIBE = Command("UNSUBSCRIBE", AUTHENTICATED, _unsubscribe)
