"""Email/changes (RFC 8621 section 4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import changing
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return which emails came, changed or went since a state."""
    fetch = context.services.messages.changes
    response, _ = await changing.run(context, args, "Email", fetch, ids.email)
    return response


METHOD = Method("Email/changes", MAIL, run, changing.TAKES)
