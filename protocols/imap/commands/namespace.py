"""NAMESPACE (RFC 2342, RFC 9051 section 6.3.10): everything is personal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.end()
    context.send(b'* NAMESPACE (("" "/")) NIL NIL\r\n')


COMMAND = Command("NAMESPACE", AUTHENTICATED, _run)
