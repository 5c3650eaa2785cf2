"""Mailbox/query (RFC 8621 section 2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import mailbox, querying, states
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids
from protocols.jmap.wire.arguments import Argument, boolean

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context

TAKES = {
    **querying.TAKES,
    "sortAsTree": Argument(boolean, False),
    "filterAsTree": Argument(boolean, False),
}


async def run(context: Context, args: Arguments) -> Arguments:
    """Return the ids of mailboxes that match, sorted, as a tree if asked for."""
    access = context.access(args["accountId"])
    listed = await context.services.mailboxes.list(access)
    boxes = mailbox.select(context, args, listed.mailboxes)
    found = [ids.mailbox(box.mailbox_id) for box in boxes]
    part = querying.window(found, args)
    state = states.of(listed.state, "Mailbox")
    return querying.query_response(args, state, part, len(found))


METHOD = Method("Mailbox/query", MAIL, run, TAKES)
