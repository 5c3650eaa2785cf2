"""Mailbox/queryChanges (RFC 8621 section 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import mailbox, querying, states
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids, state
from protocols.jmap.wire.arguments import Argument, boolean
from storage.model import Since

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context

TAKES = {
    **querying.CHANGES_TAKES,
    "sortAsTree": Argument(boolean, False),
    "filterAsTree": Argument(boolean, False),
}


async def run(context: Context, args: Arguments) -> Arguments:
    """Return how the result of a query changed since a query state.

    Counts are neither filtered nor sorted by: a change of them alone moves nothing.
    In a tree a mailbox that changed may take others along, so all are named.
    """
    access = context.access(args["accountId"])
    service = context.services.mailboxes
    listed = await service.list(access)
    known = state.since(
        args["sinceQueryState"], listed.state.epoch, listed.state.modseq
    )
    boxes = mailbox.select(context, args, listed.mailboxes)
    changes = await service.changes(access, Since(*known))
    moved = {*changes.created, *changes.destroyed}
    if not changes.only_counts:
        moved |= set(changes.updated)
    if moved and (args["sortAsTree"] or args["filterAsTree"]):
        moved |= {box.mailbox_id for box in listed.mailboxes}
    return querying.changes_response(
        args,
        states.of(listed.state, "Mailbox"),
        {ids.mailbox(number) for number in moved},
        [ids.mailbox(box.mailbox_id) for box in boxes],
    )


METHOD = Method("Mailbox/queryChanges", MAIL, run, TAKES)
