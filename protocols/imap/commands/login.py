"""LOGIN (RFC 9051 section 6.2.3), over TLS only unless the settings say otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import NOT_AUTHENTICATED
from protocols.imap.extension import Command, Context
from protocols.imap.login import log_in, require_privacy

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> bytes:
    require_privacy(context)
    args.space()
    user = args.astring()
    args.space()
    password = args.astring()
    args.end()
    return await log_in(context, user, password)


COMMAND = Command("LOGIN", NOT_AUTHENTICATED, _run)
