"""The Mailbox object (RFC 8621 section 2): how it is shown, filtered and sorted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from protocols.jmap import querying
from protocols.jmap.wire import ids
from protocols.jmap.wire.arguments import boolean, identifier, nullable, string
from protocols.jmap.wire.errors import MethodError

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context
    from protocols.jmap.querying import Comparator
    from storage.model import Mailbox

Test = Callable[["Mailbox"], bool]
COUNTS = ("totalEmails", "unreadEmails", "totalThreads", "unreadThreads")
RIGHTS = {
    "mayReadItems": True,
    "mayAddItems": True,
    "mayRemoveItems": True,
    "maySetSeen": True,
    "maySetKeywords": True,
    "mayCreateChild": True,
    "mayRename": True,
    "mayDelete": True,
    "maySubmit": True,
}
INBOX_RIGHTS = {**RIGHTS, "mayRename": False, "mayDelete": False}
PROPERTIES = (
    "id",
    "name",
    "parentId",
    "role",
    "sortOrder",
    *COUNTS,
    "myRights",
    "isSubscribed",
)
SERVER_SET = frozenset({"id", *COUNTS, "myRights"})


def show(box: Mailbox) -> dict[str, Any]:
    """Return all properties of a mailbox."""
    return {
        "id": ids.mailbox(box.mailbox_id),
        "name": box.name,
        "parentId": None if box.parent_id is None else ids.mailbox(box.parent_id),
        "role": box.role or None,
        "sortOrder": box.sort_order,
        "totalEmails": box.total_emails,
        "unreadEmails": box.unread_emails,
        "totalThreads": box.total_threads,
        "unreadThreads": box.unread_threads,
        "myRights": INBOX_RIGHTS if box.role == "inbox" else RIGHTS,
        "isSubscribed": box.subscribed,
    }


# --- queries -------------------------------------------------------------------


def select(
    context: Context, args: Arguments, boxes: Sequence[Mailbox]
) -> list[Mailbox]:
    """Filter and sort as Mailbox/query says, trees included (RFC 8621 section 2.3)."""
    test = _filter(context, args["filter"])
    order = _order(querying.comparators(args["sort"]))
    kept = [box for box in boxes if test(box)]
    if args["filterAsTree"]:
        kept = _rooted(kept, boxes)
    return _tree(kept, boxes, order) if args["sortAsTree"] else order(kept)


def _filter(context: Context, given: dict[str, Any] | None) -> Test:
    checks: dict[str, Callable[[Any], Any]] = {
        "parentId": nullable(identifier),
        "name": string,
        "role": nullable(string),
        "hasAnyRole": boolean,
        "isSubscribed": boolean,
    }

    def leaf(condition: dict[str, Any]) -> Test:
        values = querying.condition_values(condition, checks)
        if values.get("parentId") is not None:
            values["parentId"] = context.real(values["parentId"])
        tests = [_condition(name, value) for name, value in values.items()]
        return lambda box: all(test(box) for test in tests)

    def branch(operator: str, tests: tuple[Test, ...]) -> Test:
        if operator == "AND":
            return lambda box: all(test(box) for test in tests)
        if operator == "OR":
            return lambda box: any(test(box) for test in tests)
        return lambda box: not any(test(box) for test in tests)

    test: Test | None = querying.walk_filter(given, leaf, branch)
    return test or (lambda _: True)


def _condition(name: str, value: Any) -> Test:
    if name == "parentId":
        parent = None if value is None else ids.parse_mailbox(value) or -1
        return lambda box: box.parent_id == parent
    if name == "name":
        needle = value.casefold()
        return lambda box: needle in box.name.casefold()
    if name == "role":
        return lambda box: (box.role or None) == value
    if name == "hasAnyRole":
        return lambda box: bool(box.role) == value
    return lambda box: box.subscribed == value


Order = Callable[[Iterable["Mailbox"]], list["Mailbox"]]
_KEYS: dict[str, Callable[[Mailbox], Any]] = {
    "sortOrder": lambda box: box.sort_order,
    "name": lambda box: (box.name.casefold(), box.name),
}


def _order(comparators: tuple[Comparator, ...]) -> Order:
    for one in comparators:
        if one.property not in _KEYS:
            raise MethodError("unsupportedSort", f"cannot sort by {one.property!r}")

    def ordered(boxes: Iterable[Mailbox]) -> list[Mailbox]:
        found = sorted(boxes, key=lambda box: box.mailbox_id)
        for one in reversed(comparators):
            found.sort(key=_KEYS[one.property], reverse=not one.ascending)
        return found

    return ordered


def _rooted(kept: list[Mailbox], boxes: Sequence[Mailbox]) -> list[Mailbox]:
    """Leave only mailboxes all of whose ancestors are kept too."""
    parents = {box.mailbox_id: box.parent_id for box in boxes}
    inside = {box.mailbox_id for box in kept}

    @functools.cache
    def whole(key: int | None) -> bool:
        return key is None or (key in inside and whole(parents.get(key)))

    return [box for box in kept if whole(box.mailbox_id)]


def _tree(kept: list[Mailbox], boxes: Sequence[Mailbox], order: Order) -> list[Mailbox]:
    """Return parents before children, siblings by ``order``."""
    children: dict[int | None, list[Mailbox]] = {}
    for box in order(boxes):
        children.setdefault(box.parent_id, []).append(box)
    inside = {box.mailbox_id for box in kept}
    found: list[Mailbox] = []
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        box = waiting.pop()
        if box.mailbox_id in inside:
            found.append(box)
        waiting += reversed(children.get(box.mailbox_id, []))
    return found
