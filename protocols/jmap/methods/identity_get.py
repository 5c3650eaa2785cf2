"""Identity/get (RFC 8621 section 6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import gets, identity, states
from protocols.jmap.method import Method
from protocols.jmap.services import SUBMISSION
from protocols.jmap.wire import ids

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return identities; null ids mean all of them."""
    access = context.access(args["accountId"])
    wanted = gets.properties(args["properties"], identity.PROPERTIES)
    state, listed = await context.services.identities.list(access)
    missing: list[str] = []
    known = {one.identity_id: one for one in listed}
    found = list(known.values())
    if args["ids"] is not None:
        numbers, missing = gets.numbers(context, args["ids"], ids.parse_identity)
        found = [known[number] for number in numbers if number in known]
        missing += [text for number, text in numbers.items() if number not in known]
    shown = [gets.chosen(identity.show(one), wanted) for one in found]
    return gets.response(args, states.of(state, "Identity"), shown, missing)


METHOD = Method("Identity/get", SUBMISSION, run, gets.TAKES)
