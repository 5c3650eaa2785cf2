"""ID (RFC 2971): who we are; what the client says is logged at debug level only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.log import get_logger
from protocols.imap.conn import ANY
from protocols.imap.extension import Command, Context, Extension
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor

log = get_logger("imap")
MAX_PAIRS = 30
MAX_VALUE = 1024


async def _run(context: Context, args: Cursor) -> None:
    args.space()
    told = _parameters(args)
    args.end()
    log.debug("client-id", peer=context.channel.transport.peer, told=told)
    context.send(b'* ID ("name" "mailserverd")\r\n')


def _parameters(args: Cursor) -> dict[str, str]:
    if not args.next_is(b"("):
        if args.nstring() is not None:
            raise WireError("expected a list or NIL")
        return {}
    told: dict[str, str] = {}

    def pair() -> None:
        name = args.string()
        args.space()
        value = args.nstring() or b""
        if len(told) >= MAX_PAIRS or len(value) > MAX_VALUE:
            raise WireError("too much in ID")
        told[name.decode("utf-8", "replace")[:30]] = value.decode("utf-8", "replace")

    args.group(pair, empty=True)
    return told


EXTENSION = Extension(before_login=("ID",), commands=(Command("ID", ANY, _run),))
