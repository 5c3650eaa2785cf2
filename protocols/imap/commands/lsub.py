r"""LSUB (RFC 3501 section 6.3.9): subscribed names, existing or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap import listing
from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    args.space()
    reference = args.mailbox(utf8=context.modes.utf8)
    args.space()
    pattern = args.list_mailbox(utf8=context.modes.utf8)
    args.end()
    names = await context.services.mailboxes.subscriptions(context.access)
    for path, found in _answers(reference + pattern, names):
        context.send(listing.line(context, path, found, response=b"LSUB"))


def _answers(pattern: str, names: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    r"""Return matching names; with ``%``, parents of subscribed ones as \Noselect."""
    test = listing.matcher(pattern)
    found: dict[str, list[str]] = {name: [] for name in names if test(name)}
    if pattern.endswith("%"):
        for name in names:
            parts = name.split(listing.SEPARATOR)
            for i in range(1, len(parts)):
                above = listing.SEPARATOR.join(parts[:i])
                if above not in found and test(above):
                    found[above] = ["\\Noselect"]
    return sorted(found.items())


COMMAND = Command("LSUB", AUTHENTICATED, _run)
