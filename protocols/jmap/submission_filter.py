"""Filters and sorts of EmailSubmission/query (RFC 8621 section 7.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocols.jmap import querying
from protocols.jmap.wire import ids
from protocols.jmap.wire.arguments import identifier, list_of, string, utc_date
from protocols.jmap.wire.errors import MethodError
from storage.model import Condition, Operator, Sort

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocols.jmap.method import Context
    from storage.model import Filter

_CHECKS: dict[str, Callable[[Any], Any]] = {
    "identityIds": list_of(identifier),
    "emailIds": list_of(identifier),
    "threadIds": list_of(identifier),
    "undoStatus": string,
    "before": utc_date,
    "after": utc_date,
}
_IDS = {
    "identityIds": ("identity_ids", ids.parse_identity),
    "emailIds": ("email_ids", ids.parse_email),
    "threadIds": ("thread_ids", ids.parse_thread),
}
_NAMES = {"undoStatus": "undo_status"}
SORTS = ("emailId", "threadId", "sentAt")


def parse(context: Context, given: dict[str, Any] | None) -> Filter | None:
    """Translate a filter into storage's terms."""

    def leaf(condition: dict[str, Any]) -> Filter:
        values = querying.condition_values(condition, _CHECKS)
        return Operator(
            "AND", tuple(_condition(context, *item) for item in values.items())
        )

    filter_: Filter | None = querying.walk_filter(given, leaf, Operator)
    return filter_


def _condition(context: Context, name: str, value: Any) -> Condition:
    if name in _IDS:
        op, parse_id = _IDS[name]
        numbers = (parse_id(context.real(text)) for text in value)
        return Condition(op, tuple(n for n in numbers if n is not None))
    return Condition(_NAMES.get(name, name), value)


def sort(given: list[dict[str, Any]] | None) -> tuple[Sort, ...]:
    """Translate comparators; ``unsupportedSort``."""
    comparators = querying.comparators(given)
    for one in comparators:
        if one.property not in SORTS:
            raise MethodError("unsupportedSort", f"cannot sort by {one.property!r}")
    return tuple(Sort(one.property, one.ascending) for one in comparators)
