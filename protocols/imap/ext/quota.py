"""QUOTA (RFC 9208): one root, the account; the resource STORAGE in KiB.

There is no limit on the number of messages, so MESSAGE is not offered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context, Extension
from protocols.imap.replies import Refused

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor

ROOT = b'""'
KIB = 1024


async def _get_quota(context: Context, args: Cursor) -> None:
    args.space()
    root = args.astring()
    args.end()
    if root:
        raise Refused("NONEXISTENT", "no such quota root")
    await _send(context)


async def _get_quota_root(context: Context, args: Cursor) -> None:
    args.space()
    path = args.mailbox(utf8=context.modes.utf8)
    args.end()
    mailbox = await context.find(path)
    context.send(b"* QUOTAROOT %b %b\r\n" % (context.name(mailbox.path), ROOT))
    await _send(context)


async def _send(context: Context) -> None:
    """Without a limit the root has no resource (RFC 9208 section 4.2.1)."""
    state = await context.services.mailboxes.state(context.access)
    resource = b""
    if state.quota_limit:
        used = -(-state.quota_used // KIB)
        resource = b"STORAGE %d %d" % (used, state.quota_limit // KIB)
    context.send(b"* QUOTA %b (%b)\r\n" % (ROOT, resource))


EXTENSION = Extension(
    capabilities=("QUOTA", "QUOTA=RES-STORAGE"),
    commands=(
        Command("GETQUOTA", AUTHENTICATED, _get_quota),
        Command("GETQUOTAROOT", AUTHENTICATED, _get_quota_root),
    ),
)
