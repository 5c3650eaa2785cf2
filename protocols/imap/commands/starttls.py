"""STARTTLS (RFC 9051 section 6.2.1).

Nothing that was sent before the handshake survives it: octets behind the command are
refused, so a man in the middle cannot inject commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import NOT_AUTHENTICATED
from protocols.imap.extension import Command, Context
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> bytes:
    args.end()
    transport = context.channel.transport
    if transport.tls:
        raise WireError("TLS is active already")
    if not transport.can_start_tls:
        raise WireError("TLS is not available here")
    if context.channel.reader.buffered:
        raise WireError("nothing may follow STARTTLS before the handshake")
    context.after_reply = transport.start_tls
    return b"Begin TLS negotiation now"


COMMAND = Command("STARTTLS", NOT_AUTHENTICATED, _run)
