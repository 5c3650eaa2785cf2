"""Mailbox/changes (RFC 8621 section 2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import changing, mailbox
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return what changed; ``updatedProperties`` when it was counts alone."""
    response, found = await changing.run(
        context, args, "Mailbox", context.services.mailboxes.changes, ids.mailbox
    )
    only_counts = found.only_counts and bool(found.updated)
    response["updatedProperties"] = list(mailbox.COUNTS) if only_counts else None
    return response


METHOD = Method("Mailbox/changes", MAIL, run, changing.TAKES)
