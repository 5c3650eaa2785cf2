"""IDLE (RFC 9051 section 6.3.13, RFC 2177): news as they happen, until DONE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context
from protocols.imap.views import MailboxGoneError
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor

MAX_LINE = 256


async def _run(context: Context, args: Cursor) -> None:
    args.end()
    selected = context.selected
    if selected is not None:
        selected.listener = lambda: _push(context)  # before the refresh: no gap
    try:
        await context.refresh()
        context.send(b"+ idling\r\n")
        context.tell(expunge=True)
        line = await context.channel.line(MAX_LINE)
    finally:
        if selected is not None:
            selected.listener = None
    if line.upper() != b"DONE":
        raise WireError("expected DONE")


def _push(context: Context) -> None:
    """Write what is new; a peer that does not read is told at DONE instead."""
    channel = context.channel
    if not channel.waiting or channel.congested:
        return
    try:
        context.views.behind(context.mailbox)
    except MailboxGoneError as error:
        channel.stop(error)
        return
    context.tell(expunge=True)
    channel.flush()


COMMAND = Command("IDLE", AUTHENTICATED, _run, timed=False)
