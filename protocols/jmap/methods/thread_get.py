"""Thread/get (RFC 8621 section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocols.jmap import gets, states
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids
from protocols.jmap.wire.errors import MethodError

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context

PROPERTIES = ("id", "emailIds")


async def run(context: Context, args: Arguments) -> Arguments:
    """Return the emails of threads, oldest first."""
    access = context.access(args["accountId"])
    wanted = gets.properties(args["properties"], PROPERTIES)
    if args["ids"] is None:
        raise MethodError("requestTooLarge", "ids must name the threads to get")
    numbers, missing = gets.numbers(context, args["ids"], ids.parse_thread)
    state = states.of(await states.current(context, access), "Thread")
    threads: dict[int, tuple[int, ...]] = {}
    if numbers:
        threads = await context.services.messages.threads(access, list(numbers))
    found: list[dict[str, Any]] = []
    for number, text in numbers.items():
        emails = threads.get(number)
        if not emails:
            missing.append(text)
            continue
        full = {"id": ids.thread(number), "emailIds": [f"e{email}" for email in emails]}
        found.append(gets.chosen(full, wanted))
    return gets.response(args, state, found, missing)


METHOD = Method("Thread/get", MAIL, run, gets.TAKES)
