"""Filters and sorts of Email/query (RFC 8621 sections 4.4.1 and 4.4.2)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from protocols.jmap import querying
from protocols.jmap.session import SORTS
from protocols.jmap.wire import ids
from protocols.jmap.wire.arguments import (
    Bad,
    boolean,
    identifier,
    keyword,
    list_of,
    string,
    unsigned,
    utc_date,
)
from protocols.jmap.wire.errors import MethodError, invalid_arguments
from storage.model import Condition, Operator, Sort

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocols.jmap.method import Context
    from storage.model import Filter

MAX_TEXT = 1000  # characters of one text condition


def text(value: Any) -> str:
    """A text to look for."""
    if len(string(value)) > MAX_TEXT:
        raise Bad("shorter")
    return str(value)


def header(value: Any) -> tuple[str, ...]:
    """``[name]`` or ``[name, text]``."""
    found = list_of(text)(value)
    if len(found) not in (1, 2) or not found[0]:
        raise Bad("an array of a header field name and perhaps a text")
    return tuple(found)


# JMAP's name -> (storage's name, check)
_CONDITIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "inMailbox": ("in_mailbox", identifier),
    "inMailboxOtherThan": ("in_mailbox_other_than", list_of(identifier)),
    "before": ("before", utc_date),
    "after": ("after", utc_date),
    "minSize": ("min_size", unsigned),
    "maxSize": ("max_size", unsigned),
    "allInThreadHaveKeyword": ("all_in_thread_have_keyword", keyword),
    "someInThreadHaveKeyword": ("some_in_thread_have_keyword", keyword),
    "noneInThreadHaveKeyword": ("none_in_thread_have_keyword", keyword),
    "hasKeyword": ("has_keyword", keyword),
    "notKeyword": ("not_keyword", keyword),
    "hasAttachment": ("has_attachment", boolean),
    "text": ("text", text),
    "from": ("from", text),
    "to": ("to", text),
    "cc": ("cc", text),
    "bcc": ("bcc", text),
    "subject": ("subject", text),
    "body": ("body", text),
    "header": ("header", header),
}
_CHECKS = {name: check for name, (_, check) in _CONDITIONS.items()}
TEXT_OPS = frozenset({"text", "from", "to", "cc", "bcc", "subject", "body", "header"})
_MUTABLE = frozenset(
    {"in_mailbox", "in_mailbox_other_than", "has_keyword", "not_keyword"}
)
_BY_THREAD = frozenset(
    {
        "all_in_thread_have_keyword",
        "some_in_thread_have_keyword",
        "none_in_thread_have_keyword",
    }
)
KEYWORD_SORTS = frozenset(
    {"hasKeyword", "allInThreadHaveKeyword", "someInThreadHaveKeyword"}
)
NOTHING = Condition("ids", frozenset())


def parse(context: Context, given: dict[str, Any] | None) -> Filter | None:
    """Translate a filter into storage's terms; text conditions stay for ``Search``.

    ``invalidArguments``, ``unsupportedFilter``.
    """

    def leaf(condition: dict[str, Any]) -> Filter:
        values = querying.condition_values(condition, _CHECKS)
        found = tuple(_condition(context, *item) for item in values.items())
        return found[0] if len(found) == 1 else Operator("AND", found)

    filter_: Filter | None = querying.walk_filter(given, leaf, Operator)
    return filter_


def _condition(context: Context, name: str, value: Any) -> Filter:
    op = _CONDITIONS[name][0]
    if name == "inMailbox":
        number = ids.parse_mailbox(context.real(value))
        return NOTHING if number is None else Condition(op, number)
    if name == "inMailboxOtherThan":
        numbers = (ids.parse_mailbox(context.real(text)) for text in value)
        return Condition(op, tuple(n for n in numbers if n is not None))
    return Condition(op, value)


def sort(given: list[dict[str, Any]] | None) -> tuple[Sort, ...]:
    """Translate comparators; ``unsupportedSort``, ``invalidArguments``."""
    comparators = querying.comparators(given)
    found: list[Sort] = []
    for one in comparators:
        if one.property not in SORTS:
            raise MethodError("unsupportedSort", f"cannot sort by {one.property!r}")
        word = ""
        if one.property in KEYWORD_SORTS:
            try:
                word = keyword(one.extra.get("keyword"))
            except Bad as bad:
                raise invalid_arguments(f"keyword must be {bad}") from bad
        found.append(Sort(one.property, one.ascending, word))
    return tuple(found) or (Sort("receivedAt", ascending=False),)


@dataclasses.dataclass(frozen=True, slots=True)
class Nature:
    """What moves an email within a query's result."""

    mutable: bool  # its own keywords or mailboxes
    by_thread: bool  # those of others in its thread


def nature(
    filter_: Filter | None, sorts: tuple[Sort, ...], *, collapse: bool
) -> Nature:
    """Say what the result of a query depends on."""
    ops = _ops(filter_)
    names = {one.by for one in sorts}
    by_thread = bool(ops & _BY_THREAD) or bool(names & (KEYWORD_SORTS - {"hasKeyword"}))
    return Nature(
        mutable=bool(ops & _MUTABLE) or "hasKeyword" in names or by_thread,
        by_thread=by_thread or collapse,
    )


def _ops(filter_: Filter | None) -> set[str]:
    if filter_ is None:
        return set()
    if isinstance(filter_, Condition):
        return {filter_.op}
    return set().union(*(_ops(part) for part in filter_.conditions))


def has_text(filter_: Filter | None) -> bool:
    """Say whether the search index has to be asked."""
    return bool(_ops(filter_) & TEXT_OPS)
