"""Email/query (RFC 8621 section 4.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import email_filter, querying, states
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids
from protocols.jmap.wire.arguments import Argument, boolean
from protocols.jmap.wire.errors import MethodError
from storage.model import EmailQuery

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context

TAKES = {**querying.TAKES, "collapseThreads": Argument(boolean, False)}


async def run(context: Context, args: Arguments) -> Arguments:
    """Return the ids of emails that match, in order."""
    access = context.access(args["accountId"])
    filter_ = email_filter.parse(context, args["filter"])
    sorts = email_filter.sort(args["sort"])
    if filter_ is not None and email_filter.has_text(filter_):
        filter_ = await context.services.search.resolve(access, filter_)
    limit, _ = querying.limit_of(args)
    query = EmailQuery(
        filter=filter_,
        sort=sorts,
        position=args["position"],
        anchor=_anchor(context, args),
        anchor_offset=args["anchorOffset"],
        limit=limit,
        collapse_threads=args["collapseThreads"],
        total=args["calculateTotal"],
    )
    result = await context.services.messages.query(access, query)
    state = states.of(result.state, "Email")
    part = (result.position, [f"e{number}" for number in result.ids])
    return querying.query_response(args, state, part, result.total)


def _anchor(context: Context, args: Arguments) -> int | None:
    if args["anchor"] is None:
        return None
    number = ids.parse_email(context.real(args["anchor"]))
    if number is None:
        raise MethodError("anchorNotFound")
    return number


METHOD = Method("Email/query", MAIL, run, TAKES)
