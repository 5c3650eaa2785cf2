"""Email/get (RFC 8621 section 4.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from protocols.jmap import email_properties, email_show, gets, states
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids
from protocols.jmap.wire.ijson import Rendered, dumps
from storage.model import EmailQuery

if TYPE_CHECKING:
    from mailserverd.core.types import Access
    from protocols.jmap.email_properties import Plan
    from protocols.jmap.method import Arguments, Context
    from storage.model import EmailRow

TURN = 25  # emails shown without a pause
TAKES = {**gets.TAKES, **email_properties.TAKES}


async def run(context: Context, args: Arguments) -> Arguments:
    """Return emails; null ids mean all, as long as they are not too many."""
    access = context.access(args["accountId"])
    plan = email_properties.plan(args, email_properties.GET_DEFAULT)
    state = states.of(await states.current(context, access), "Email")
    wanted = args["ids"]
    if wanted is None:
        wanted = await _all(context, access)
    numbers, missing = gets.numbers(context, wanted, ids.parse_email)
    shown = await _shown(context, access, list(numbers), plan)
    found: list[Any] = []
    for number, text in numbers.items():
        if number in shown:
            found.append(shown[number])
        else:
            missing.append(text)
    return gets.response(args, state, found, missing)


async def _shown(
    context: Context, access: Access, numbers: list[int], plan: Plan
) -> dict[int, Any]:
    """Return emails by number; those that JMAP does not show are left out."""
    if not numbers:
        return {}
    if plan.body is None and not plan.header_block:
        return await _listed(context, access, numbers, plan)
    rows = await context.services.messages.rows(access, numbers, plan.columns)
    shown: dict[int, Any] = {}
    for number, row in rows.items():
        if row.mailboxes:
            shown[number] = await email_show.show(context, row, plan)
            if len(shown) % TURN == 0:
                await asyncio.sleep(0)  # let others have their turn
    return shown


async def _listed(
    context: Context, access: Access, numbers: list[int], plan: Plan
) -> dict[int, Rendered]:
    """Return emails as lists show them: rendered before, or from their rows.

    An email looks the same as long as its modseq does, so that is part of the key.
    """
    messages, cache = context.services.messages, context.services.cache
    account, shape = access.account, plan.shape
    shown: dict[int, Rendered] = {}
    unknown: list[int] = []
    for number, state in (await messages.get_states(access, numbers)).items():
        data = cache.get((account, number, state[0], shape))
        if data is None:
            unknown.append(number)
        else:
            context.spend(len(data))
            shown[number] = Rendered(data)
    rows = await messages.rows(access, unknown, plan.columns) if unknown else {}
    for turn, (number, row) in enumerate(rows.items()):
        if turn % TURN == TURN - 1:
            await asyncio.sleep(0)  # let others have their turn
        if row.mailboxes:
            data = dumps(_render(row, plan))
            cache.put((account, number, row.modseq, shape), data)
            context.spend(len(data))
            shown[number] = Rendered(data)
    return shown


def _render(row: EmailRow, plan: Plan) -> dict[str, Any]:
    found = email_show.metadata(row, plan)
    if plan.listed:
        found.update(email_show.listed(row, plan))
    return found


async def _all(context: Context, access: Access) -> list[str]:
    """Return the ids of all emails, one too many if there are too many."""
    query = EmailQuery(limit=context.limits.max_objects_in_get + 1)
    result = await context.services.messages.query(access, query)
    return [ids.email(number) for number in result.ids]


METHOD = Method("Email/get", MAIL, run, TAKES)
