"""Mailbox/get (RFC 8621 section 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import gets, mailbox, states
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return mailboxes; null ids mean all of them."""
    access = context.access(args["accountId"])
    wanted = gets.properties(args["properties"], mailbox.PROPERTIES)
    listed = await context.services.mailboxes.list(access)
    missing: list[str] = []
    boxes = {box.mailbox_id: box for box in listed.mailboxes}
    if args["ids"] is None:
        found = list(boxes.values())
    else:
        numbers, missing = gets.numbers(context, args["ids"], ids.parse_mailbox)
        found = [boxes[number] for number in numbers if number in boxes]
        missing += [text for number, text in numbers.items() if number not in boxes]
    shown = [gets.chosen(mailbox.show(box), wanted) for box in found]
    return gets.response(args, states.of(listed.state, "Mailbox"), shown, missing)


METHOD = Method("Mailbox/get", MAIL, run, gets.TAKES)
