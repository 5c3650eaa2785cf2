"""Thread/changes (RFC 8621 section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import changing
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(context: Context, args: Arguments) -> Arguments:
    """Return which threads came, went, or have other emails since a state."""
    fetch = context.services.messages.thread_changes
    response, _ = await changing.run(context, args, "Thread", fetch, ids.thread)
    return response


METHOD = Method("Thread/changes", MAIL, run, changing.TAKES)
