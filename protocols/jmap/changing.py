"""What all ``/changes`` methods share (RFC 8620 section 5.2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from protocols.jmap import states
from protocols.jmap.method import ACCOUNT
from protocols.jmap.push import counters
from protocols.jmap.wire import state
from protocols.jmap.wire.arguments import Argument, Schema, nullable, positive, string
from storage.model import Since

if TYPE_CHECKING:
    from mailserverd.core.types import Access
    from protocols.jmap.method import Arguments, Context
    from storage.model import AccountState, ObjectChanges

TAKES: Schema = {
    "accountId": ACCOUNT,
    "sinceState": Argument(string),
    "maxChanges": Argument(nullable(positive), None),
}
MAX_CHANGES = 10_000  # ids in one response when the client does not say
Fetch = Callable[["Access", Since], Awaitable["ObjectChanges"]]


async def run(
    context: Context,
    args: Arguments,
    type_name: str,
    fetch: Fetch,
    render: Callable[[int], str],
) -> tuple[Arguments, ObjectChanges]:
    """Return the response's arguments, and the changes they were made from.

    ``cannotCalculateChanges`` for
    a state that the account does not know (any more).
    """
    access = context.access(args["accountId"])
    before = await states.current(context, access)
    known, _, inside = state.since(args["sinceState"], before.epoch, before.modseq)
    limit = min(args["maxChanges"] or MAX_CHANGES, MAX_CHANGES)
    found = await fetch(access, Since(known, limit, inside, split=True))
    after = await states.current(context, access)
    return {
        "accountId": args["accountId"],
        "oldState": args["sinceState"],
        "newState": _new_state(after, type_name, found),
        "hasMoreChanges": found.has_more,
        "created": [render(number) for number in found.created],
        "updated": [render(number) for number in found.updated],
        "destroyed": [render(number) for number in found.destroyed],
    }, found


def _new_state(after: AccountState, type_name: str, found: ObjectChanges) -> str:
    """Return what ``/get`` shows as soon as everything was told.

    The type's own counter is where its last change was: at or before what the
    changes reach, unless somebody wrote since.
    """
    if found.has_more:
        return state.render(after.epoch, found.new_modseq, found.after)
    last = counters(after)[type_name]
    return state.render(after.epoch, min(last, found.new_modseq))
