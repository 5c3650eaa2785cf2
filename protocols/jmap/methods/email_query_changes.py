"""Email/queryChanges (RFC 8621 section 4.5), without any history of results.

An email that did not change keeps its place relative to all others that did not:
what may have moved is what changed, and, where the query looks at whole threads,
whatever shares a thread with it.  All of that is taken out and put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap import email_filter, querying, states
from protocols.jmap.method import Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire import ids, state
from protocols.jmap.wire.arguments import Argument, boolean
from storage.model import Column, EmailQuery, Since

if TYPE_CHECKING:
    from mailserverd.core.types import Access
    from protocols.jmap.email_filter import Nature
    from protocols.jmap.method import Arguments, Context
    from storage.model import ObjectChanges, QueryResult

TAKES = {**querying.CHANGES_TAKES, "collapseThreads": Argument(boolean, False)}


async def run(context: Context, args: Arguments) -> Arguments:
    """Return how the result of a query changed since a query state."""
    access = context.access(args["accountId"])
    before = await states.current(context, access)
    known = Since(*state.since(args["sinceQueryState"], before.epoch, before.modseq))
    filter_ = email_filter.parse(context, args["filter"])
    sorts = email_filter.sort(args["sort"])
    nature = email_filter.nature(filter_, sorts, collapse=args["collapseThreads"])
    if filter_ is not None and email_filter.has_text(filter_):
        filter_ = await context.services.search.resolve(access, filter_)
    query = EmailQuery(
        filter=filter_, sort=sorts, collapse_threads=args["collapseThreads"]
    )
    messages = context.services.messages
    changes = await messages.changes(access, known)
    moved = await _moved(context, access, changes, known, nature)
    result: QueryResult | None = None
    if moved or args["calculateTotal"]:
        result = await messages.query(access, query)
        if result.state.email != changes.new_modseq:
            # somebody wrote in between: say what is true at the result's state
            changes = await messages.changes(access, known)
            moved = await _moved(context, access, changes, known, nature)
    found = [] if result is None else [f"e{number}" for number in result.ids]
    now = before if result is None else result.state
    response = querying.changes_response(
        args,
        states.of(now, "Email"),
        {ids.email(number) for number in moved},
        found,
    )
    return response if nature.mutable else _up_to(args, response, found)


async def _moved(
    context: Context,
    access: Access,
    changes: ObjectChanges,
    known: Since,
    nature: Nature,
) -> set[int]:
    """Return the emails whose place may have changed, or that are gone."""
    moved = {*changes.created, *changes.destroyed}
    if nature.mutable:
        moved |= set(changes.updated)
    if not nature.by_thread or not (moved or changes.updated):
        return moved
    messages = context.services.messages
    touched = [*changes.created, *changes.updated]
    rows = await messages.rows(access, touched, Column.MAILBOXES)
    threads = {row.thread_id for row in rows.values()}
    other = await messages.thread_changes(access, known)
    threads |= {*other.created, *other.updated}
    for emails in (await messages.threads(access, sorted(threads))).values():
        moved |= set(emails)
    return moved


def _up_to(args: Arguments, response: Arguments, found: list[str]) -> Arguments:
    """Leave out what comes after upToId (RFC 8620 section 5.6)."""
    last = args["upToId"]
    if last in found:
        end = found.index(last)
        response["added"] = [one for one in response["added"] if one["index"] <= end]
    return response


METHOD = Method("Email/queryChanges", MAIL, run, TAKES)
