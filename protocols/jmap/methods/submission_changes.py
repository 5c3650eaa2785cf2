"""EmailSubmission/changes (RFC 8621 section 7.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import changing
from protocols.jmap.method import Method
from protocols.jmap.services import SUBMISSION
from protocols.jmap.wire import ids

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return which submissions came, changed or went since a state."""
    fetch = context.services.submissions.changes
    response, _ = await changing.run(
        context, args, "EmailSubmission", fetch, ids.submission
    )
    return response


METHOD = Method("EmailSubmission/changes", SUBMISSION, run, changing.TAKES)
