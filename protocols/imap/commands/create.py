"""CREATE (RFC 9051 section 6.3.4), with USE (RFC 6154 section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context
from protocols.imap.listing import ROLES
from protocols.imap.replies import Refused
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> bytes:
    args.space()
    path = args.mailbox(utf8=context.modes.utf8).removesuffix("/")
    uses = _uses(args) if args.take(b" ") else []
    args.end()
    if len(uses) > 1:
        raise Refused("USEATTR", "a mailbox has one special use here")
    role = _role(uses[0]) if uses else ""
    try:
        made = await context.services.mailboxes.create_path(context.access, path, role)
    except MailError as error:
        if role and error.kind in {Kind.INVALID, Kind.CONFLICT}:
            raise Refused("USEATTR", error.text) from error
        raise
    return b"[MAILBOXID (m%d)] CREATE completed" % made.mailbox_id


def _uses(args: Cursor) -> list[str]:
    args.expect(b"(")
    if args.word() != "USE":
        raise WireError("unknown CREATE parameter")
    args.space()
    uses = args.group(args.flag, empty=True)
    args.expect(b")")
    return uses


def _role(use: str) -> str:
    role = ROLES.get(use.lower())
    if role is None:
        raise Refused("USEATTR", "no such special use")
    return role


COMMAND = Command("CREATE", AUTHENTICATED, _run)
