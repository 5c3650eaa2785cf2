"""Email/get (RFC 8621 section 4.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from protocols.jmap import email_properties, email_show, gets, states
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids
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
    rows: dict[int, EmailRow] = {}
    if numbers:
        messages = context.services.messages
        rows = await messages.rows(access, list(numbers), plan.columns)
    found: list[dict[str, Any]] = []
    for number, text in numbers.items():
        row = rows.get(number)
        if row is None or not row.mailboxes:
            missing.append(text)
        else:
            found.append(await _one(context, row, plan))
            if len(found) % TURN == 0:
                await asyncio.sleep(0)  # let others have their turn
    return gets.response(args, state, found, missing)


async def _all(context: Context, access: Access) -> list[str]:
    """Return the ids of all emails, one too many if there are too many."""
    query = EmailQuery(limit=context.limits.max_objects_in_get + 1)
    result = await context.services.messages.query(access, query)
    return [ids.email(number) for number in result.ids]


async def _one(context: Context, row: EmailRow, plan: Plan) -> dict[str, Any]:
    if plan.body is None and not plan.header_block:
        found = email_show.metadata(row, plan)
        if plan.listed:
            context.spend(len(row.list_json))
            found.update(email_show.listed(row, plan))
        return found
    return await email_show.show(context, row, plan)


METHOD = Method("Email/get", MAIL, run, TAKES)
