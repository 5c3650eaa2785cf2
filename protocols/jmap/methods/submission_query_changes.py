"""EmailSubmission/queryChanges (RFC 8621 section 7.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import querying, states, submission_filter
from protocols.jmap.method import Method
from protocols.jmap.services import SUBMISSION
from protocols.jmap.wire import ids, state
from storage.model import EmailQuery, Since

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return how the result of a query changed since a query state."""
    access = context.access(args["accountId"])
    service = context.services.submissions
    before = await states.current(context, access)
    known = Since(*state.since(args["sinceQueryState"], before.epoch, before.modseq))
    query = EmailQuery(
        filter=submission_filter.parse(context, args["filter"]),
        sort=submission_filter.sort(args["sort"]),
    )
    result = await service.query(access, query)
    changes = await service.changes(access, known)
    moved = {*changes.created, *changes.updated, *changes.destroyed}
    return querying.changes_response(
        args,
        states.of(result.state, "EmailSubmission"),
        {ids.submission(number) for number in moved},
        [ids.submission(number) for number in result.ids],
    )


METHOD = Method("EmailSubmission/queryChanges", SUBMISSION, run, querying.CHANGES_TAKES)
