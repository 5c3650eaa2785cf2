"""EmailSubmission/query (RFC 8621 section 7.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import querying, states, submission_filter
from protocols.jmap.method import Method
from protocols.jmap.services import SUBMISSION
from protocols.jmap.wire import ids
from protocols.jmap.wire.errors import MethodError
from storage.model import EmailQuery

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return the ids of submissions that match, in order."""
    access = context.access(args["accountId"])
    anchor = None
    if args["anchor"] is not None:
        anchor = ids.parse_submission(context.real(args["anchor"]))
        if anchor is None:
            raise MethodError("anchorNotFound")
    limit, _ = querying.limit_of(args)
    query = EmailQuery(
        filter=submission_filter.parse(context, args["filter"]),
        sort=submission_filter.sort(args["sort"]),
        position=args["position"],
        anchor=anchor,
        anchor_offset=args["anchorOffset"],
        limit=limit,
        total=args["calculateTotal"],
    )
    result = await context.services.submissions.query(access, query)
    part = (result.position, [ids.submission(number) for number in result.ids])
    state = states.of(result.state, "EmailSubmission")
    return querying.query_response(args, state, part, result.total)


METHOD = Method("EmailSubmission/query", SUBMISSION, run, querying.TAKES)
