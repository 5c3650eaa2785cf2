"""Email/get (RFC 8621 section 4.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import MailError
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
    from storage.model import AccountState, EmailRow

TURN = 25  # emails shown without a pause
TAKES = {**gets.TAKES, **email_properties.TAKES}


async def run(context: Context, args: Arguments) -> Arguments:
    """Return emails; null ids mean all, as long as they are not too many."""
    access = context.access(args["accountId"])
    plan = email_properties.plan(args, email_properties.GET_DEFAULT)
    wanted = args["ids"]
    if wanted is None:
        wanted = await _all(context, access)
    numbers, missing = gets.numbers(context, wanted, ids.parse_email)
    if plan.body is None and not plan.header_block:
        now, shown = await _listed(context, access, list(numbers), plan)
    else:
        now = await states.current(context, access)
        shown = await _shown(context, access, list(numbers), plan)
    state = states.of(now, "Email")
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
    """Return emails by number; those that JMAP does not show are left out.

    One whose octets are damaged is shown with empty, truncated bodies if others can
    be read.  Otherwise the store is down, and so is this method: an empty body would
    be taken for the message, and kept.
    """
    if not numbers:
        return {}
    rows = await context.services.messages.rows(access, numbers, plan.columns)
    shown: dict[int, Any] = {}
    unreadable: list[EmailRow] = []
    for number, row in rows.items():
        if not row.mailboxes:
            continue
        try:
            shown[number] = await email_show.show(context, row, plan)
        except MailError as error:
            partly = email_show.shows_without_octets(plan)
            if not error.details.get("damaged") or not partly:
                raise
            unreadable.append(row)
            down = error
        if len(shown) % TURN == 0:
            await asyncio.sleep(0)  # let others have their turn
    if unreadable and not shown:
        raise down
    for row in unreadable:
        found = await email_show.show(context, row, plan, unreadable=True)
        shown[row.email_id] = found
    return shown


async def _listed(
    context: Context, access: Access, numbers: list[int], plan: Plan
) -> tuple[AccountState, dict[int, Rendered]]:
    """Return emails as lists show them: rendered before, or from their rows.

    An email looks the same as long as its modseq does, so that is part of the key.
    What changed since this account was last looked at is read with the states: where
    the database is far, that saves a journey.
    """
    messages, cache = context.services.messages, context.services.cache
    account, shape = access.account, plan.shape
    looked = ("looked", account, shape)
    since = int(cache.get(looked) or 0)
    listed = await messages.listed(access, numbers, plan.columns, since)
    cache.put(looked, b"%d" % listed.state.modseq)
    shown: dict[int, Rendered] = {}
    unknown: list[int] = []
    for number, known in listed.states.items():
        data = cache.get((account, number, known[0], shape))
        if data is not None:
            context.spend(len(data))
            shown[number] = Rendered(data)
        elif number not in listed.rows:
            unknown.append(number)
    rows = listed.rows
    if unknown:
        rows = rows | await messages.rows(access, unknown, plan.columns)
    for turn, (number, row) in enumerate(rows.items()):
        if turn % TURN == TURN - 1:
            await asyncio.sleep(0)  # let others have their turn
        if number in listed.states and row.mailboxes and number not in shown:
            data = dumps(_render(row, plan))
            cache.put((account, number, row.modseq, shape), data)
            context.spend(len(data))
            shown[number] = Rendered(data)
    return listed.state, shown


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
