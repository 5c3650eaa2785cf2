"""Identity/changes (RFC 8621 section 6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import changing
from protocols.jmap.method import Method
from protocols.jmap.services import SUBMISSION
from protocols.jmap.wire import ids

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return which identities came, changed or went since a state."""
    fetch = context.services.identities.changes
    response, _ = await changing.run(context, args, "Identity", fetch, ids.identity)
    return response


METHOD = Method("Identity/changes", SUBMISSION, run, changing.TAKES)
