"""SearchSnippet/get (RFC 8621 section 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocols.jmap import email_filter, gets, snippets
from protocols.jmap.method import ACCOUNT, Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids
from protocols.jmap.wire.arguments import (
    Argument,
    identifier,
    list_of,
    mapping,
    nullable,
)
from storage.model import Column

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context

TAKES = {
    "accountId": ACCOUNT,
    "filter": Argument(nullable(mapping), None),
    "emailIds": Argument(list_of(identifier)),
}
BUSY = 16  # texts that are searched on the loop


async def run(context: Context, args: Arguments) -> Arguments:
    """Return where the words of a filter stand in subjects and bodies."""
    access = context.access(args["accountId"])
    wanted = snippets.wanted(email_filter.parse(context, args["filter"]))
    numbers, missing = gets.numbers(context, args["emailIds"], ids.parse_email)
    messages = context.services.messages
    rows = await messages.rows(access, list(numbers), Column.MAILBOXES | Column.LIST)
    shown = {number: row for number, row in rows.items() if row.mailboxes}
    missing += [text for number, text in numbers.items() if number not in shown]
    texts: dict[int, tuple[str, str]] = {}
    if wanted and shown:
        texts = await messages.search_text(access, list(shown))
    items = [(n, row.list_json, texts.get(n, ("", ""))[1]) for n, row in shown.items()]
    if len(items) > BUSY and wanted:
        found: list[dict[str, Any]] = await context.services.offload(
            snippets.make, wanted, items
        )
    else:
        found = snippets.make(wanted, items)
    return {
        "accountId": args["accountId"],
        "list": found,
        "notFound": missing or None,
    }


METHOD = Method("SearchSnippet/get", MAIL, run, TAKES)
