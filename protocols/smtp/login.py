"""AUTH: a SASL exchange in base64 lines (RFC 4954 section 4)."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from auth.people import sasl
from protocols.smtp import replies
from protocols.smtp.conn import BadLine, Line
from protocols.smtp.wire.reply import Reply

if TYPE_CHECKING:
    from auth.people.sasl import Credentials
    from protocols.smtp.frame import Frame


class Refused(Exception):
    """The exchange ended without credentials; the reply says why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


async def exchange(frame: Frame, argument: str, limit: float) -> Credentials:
    """Hold the exchange that ``AUTH argument`` begins; Refused.

    ``limit`` is the time for each of the client's lines, in seconds.
    """
    mechanism, _, initial = argument.partition(" ")
    started = sasl.start(mechanism.upper())
    if started is None:
        raise Refused(replies.AUTH_MECHANISM)
    data = _initial_response(initial)
    while True:
        try:
            step = started.step(data)
        except sasl.SaslError:
            raise Refused(replies.AUTH_SYNTAX) from None
        if isinstance(step, sasl.Done):
            return step.credentials
        frame.reply(Reply(334, "", base64.b64encode(step.data).decode()))
        event = await frame.event(limit)
        if not isinstance(event, Line):
            too_long = isinstance(event, BadLine) and event.too_long
            raise Refused(replies.AUTH_TOO_LONG if too_long else replies.BARE_LINE_END)
        if event.data == b"*":
            raise Refused(replies.AUTH_ABORTED)
        data = _decode(event.data)


def _initial_response(text: str) -> bytes | None:
    """Decode it; "=" is an empty one (RFC 4954 section 4)."""
    if not text:
        return None
    return b"" if text == "=" else _decode(text.encode())


def _decode(data: bytes) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(replies.AUTH_SYNTAX) from None
