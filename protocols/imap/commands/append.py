r"""APPEND (RFC 9051 section 6.3.12), streamed: no message is held in memory.

With APPENDUID and TRYCREATE (RFC 4315), TOOBIG and APPENDLIMIT (RFC 7889), OVERQUOTA
(RFC 9208).  Everything that can be refused is refused before the octets are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from protocols.imap import flags
from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context
from protocols.imap.replies import Refused
from protocols.imap.wire.errors import WireError
from storage.model import DELETED_BIT, Flags

if TYPE_CHECKING:
    from mailserverd.services.receive import Appended
    from protocols.imap.channel import Literal
    from protocols.imap.wire.cursor import Cursor
    from storage.model import Added


async def _run(context: Context, args: Cursor) -> bytes:
    args.space()
    path = args.mailbox(utf8=context.modes.utf8)
    args.space()
    listed: list[str] = []
    if args.next_is(b"("):
        listed = flags.flag_list(args)
        args.space()
    when = int(context.services.clock.now())
    if args.next_is(b'"'):
        when = args.date_time()
        args.space()
    literal = context.literal
    if literal is None:
        raise WireError("expected a literal")
    args.end()
    given = flags.parse(listed)
    bits = given.flags.system | (DELETED_BIT if given.deleted else 0)
    _check_size(context, literal)
    mailbox = await context.find(path, code="TRYCREATE")
    incoming = await context.services.receive.open_append(
        context.access,
        (mailbox.mailbox_id,),
        Flags(bits, given.flags.keywords),
        max(when, 0),
        literal.size,
    )
    added = await _receive(incoming, literal)
    _, validity, uid = added.placed[0]
    return b"[APPENDUID %d %d] APPEND completed" % (validity, uid)


def _check_size(context: Context, literal: Literal) -> None:
    if literal.size > context.services.settings.max_message_size:
        raise MailError(Kind.TOO_LARGE, "message too large")
    if not literal.size:
        raise Refused("CANNOT", "an empty message cannot be stored")


async def _receive(incoming: Appended, literal: Literal) -> Added:
    """Spool the literal, then store it; whatever goes wrong leaves nothing behind."""
    try:
        nul = False
        async for chunk in literal.chunks():
            nul = nul or b"\0" in chunk
            await incoming.write(chunk)
        if literal.tail is not None:
            literal.tail.end()
        if nul and literal.binary:  # RFC 3516 section 4.4
            raise Refused("UNKNOWN-CTE", "messages with NUL cannot be stored")
        if nul:  # RFC 9051 section 4.3: not in a literal
            raise WireError("NUL in a message")
        receipt = await incoming.finish()
    finally:
        incoming.abort()
    if receipt.added is None:
        raise MailError(Kind.INTERNAL, "stored, but nowhere")
    return receipt.added


COMMAND = Command("APPEND", AUTHENTICATED, _run)
