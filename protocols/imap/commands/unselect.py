"""UNSELECT (RFC 9051 section 6.4.2, RFC 3691): leave without expunging."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import SELECTED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.end()
    context.unselect()


COMMAND = Command("UNSELECT", SELECTED, _run, news=False)
