"""EmailSubmission/get (RFC 8621 section 7.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import gets, states, submission
from protocols.jmap.method import Method
from protocols.jmap.services import SUBMISSION
from protocols.jmap.wire import ids
from protocols.jmap.wire.errors import MethodError

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return submissions with what became of them; null ids mean all."""
    access = context.access(args["accountId"])
    wanted = gets.properties(args["properties"], submission.PROPERTIES)
    numbers: dict[int, str] | None = None
    missing: list[str] = []
    if args["ids"] is not None:
        numbers, missing = gets.numbers(context, args["ids"], ids.parse_submission)
    service = context.services.submissions
    state, rows = await service.get(access, None if numbers is None else list(numbers))
    if len(rows) > context.limits.max_objects_in_get:
        raise MethodError("requestTooLarge", "more submissions than maxObjectsInGet")
    shown = [gets.chosen(await submission.show(context, row), wanted) for row in rows]
    known = {row.submission_id for row in rows}
    missing += [text for n, text in (numbers or {}).items() if n not in known]
    return gets.response(args, states.of(state, "EmailSubmission"), shown, missing)


METHOD = Method("EmailSubmission/get", SUBMISSION, run, gets.TAKES)
