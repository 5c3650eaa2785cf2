"""AUTHENTICATE (RFC 9051 section 6.2.2) with an initial response (RFC 4959)."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING

from auth.people import sasl
from protocols.imap.conn import NOT_AUTHENTICATED
from protocols.imap.extension import Command, Context
from protocols.imap.login import log_in, require_privacy
from protocols.imap.replies import Refused
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from auth.people.sasl import Credentials
    from auth.people.sasl.exchange import Exchange
    from protocols.imap.wire.cursor import Cursor

MAX_RESPONSE = 8192  # octets of one line from the client


async def _run(context: Context, args: Cursor) -> bytes:
    args.space()
    exchange = sasl.start(args.word())
    initial = None
    if args.take(b" "):
        response = args.atom()
        initial = b"" if response == b"=" else _decode(response)
    args.end()
    require_privacy(context)
    if exchange is None:
        raise Refused("CANNOT", "no such mechanism")
    credentials = await _converse(context, exchange, initial)
    if credentials.authzid not in {"", credentials.user}:
        raise Refused("AUTHORIZATIONFAILED", "cannot act for somebody else")
    user = credentials.user.encode("utf-8", "surrogatepass")
    return await log_in(context, user, credentials.password)


async def _converse(
    context: Context, exchange: Exchange, data: bytes | None
) -> Credentials:
    """Exchange challenges and responses until the mechanism is done."""
    while True:
        try:
            step = exchange.step(data)
        except sasl.SaslError as error:
            context.failures += 1
            raise Refused("AUTHENTICATIONFAILED", str(error)) from error
        if isinstance(step, sasl.Done):
            return step.credentials
        challenge = binascii.b2a_base64(step.data, newline=False)
        context.send(b"+ %b\r\n" % challenge)
        line = await context.channel.line(MAX_RESPONSE)
        if line == b"*":
            raise WireError("authentication cancelled")
        data = _decode(line)


def _decode(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise WireError("invalid base64") from None


COMMAND = Command("AUTHENTICATE", NOT_AUTHENTICATED, _run)
