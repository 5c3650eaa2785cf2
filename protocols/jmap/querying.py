"""What ``/query`` and ``/queryChanges`` share (RFC 8620 sections 5.5 and 5.6)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from protocols.jmap.method import ACCOUNT
from protocols.jmap.wire.arguments import (
    Argument,
    Bad,
    Schema,
    boolean,
    identifier,
    integer,
    list_of,
    mapping,
    nullable,
    string,
    unsigned,
)
from protocols.jmap.wire.errors import MethodError, invalid_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from protocols.jmap.method import Arguments

TAKES: Schema = {
    "accountId": ACCOUNT,
    "filter": Argument(nullable(mapping), None),
    "sort": Argument(nullable(list_of(mapping)), None),
    "position": Argument(integer, 0),
    "anchor": Argument(nullable(identifier), None),
    "anchorOffset": Argument(integer, 0),
    "limit": Argument(nullable(unsigned), None),
    "calculateTotal": Argument(boolean, False),
}
CHANGES_TAKES: Schema = {
    "accountId": ACCOUNT,
    "filter": Argument(nullable(mapping), None),
    "sort": Argument(nullable(list_of(mapping)), None),
    "sinceQueryState": Argument(string),
    "maxChanges": Argument(nullable(unsigned), None),
    "upToId": Argument(nullable(identifier), None),
    "calculateTotal": Argument(boolean, False),
}
MAX_LIMIT = 10_000  # ids in one response
MAX_CONDITIONS = 500
MAX_DEPTH = 16
MAX_COMPARATORS = 16
COLLATIONS = frozenset({"i;unicode-casemap"})


@dataclasses.dataclass(frozen=True, slots=True)
class Comparator:
    """One element of ``sort``; ``extra`` are its other members.

    Unknown ones are passed over: jmapc sends some with every Comparator.
    """

    property: str
    ascending: bool
    extra: dict[str, Any]


def comparators(sort: list[dict[str, Any]] | None) -> tuple[Comparator, ...]:
    """Check ``sort``; ``invalidArguments`` or ``unsupportedSort`` (collations)."""
    if len(sort or ()) > MAX_COMPARATORS:
        raise MethodError("unsupportedSort", "too many comparators")
    return tuple(_comparator(one) for one in sort or ())


def _comparator(one: dict[str, Any]) -> Comparator:
    rest = dict(one)
    name, ascending = rest.pop("property", None), rest.pop("isAscending", True)
    collation = rest.pop("collation", None)
    if not isinstance(name, str) or not isinstance(ascending, bool):
        raise invalid_arguments("a Comparator has a property and isAscending")
    if collation is not None and not isinstance(collation, str):
        raise invalid_arguments("collation must be a String")
    if collation is not None and collation not in COLLATIONS:
        raise MethodError("unsupportedSort", f"unknown collation {collation!r}")
    return Comparator(name, ascending, rest)


def walk_filter(
    given: dict[str, Any] | None,
    leaf: Callable[[dict[str, Any]], Any],
    branch: Callable[[str, tuple[Any, ...]], Any],
) -> Any:
    """Translate a filter: ``leaf`` per FilterCondition, ``branch`` per operator.

    ``invalidArguments`` for what is no filter, ``unsupportedFilter`` beyond
    the bounds of depth and size.
    """
    return None if given is None else _Walk(leaf, branch).node(given, 1)


class _Walk:
    def __init__(self, leaf: Any, branch: Any) -> None:
        self._leaf = leaf
        self._branch = branch
        self._left = MAX_CONDITIONS

    def node(self, given: Any, depth: int) -> Any:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise MethodError("unsupportedFilter", "the filter is too complex")
        if not isinstance(given, dict):
            raise invalid_arguments("a filter is an object")
        if "operator" not in given:
            return self._leaf(given)
        match given:
            case {"operator": "AND" | "OR" | "NOT" as operator, "conditions": list(c)}:
                if len(given) == 2:
                    below = tuple(self.node(item, depth + 1) for item in c)
                    return self._branch(operator, below)
        raise invalid_arguments("a FilterOperator is AND, OR or NOT of conditions")


def condition_values(
    condition: dict[str, Any], checks: dict[str, Callable[[Any], Any]]
) -> dict[str, Any]:
    """Check the members of a FilterCondition, all of them."""
    unknown = sorted(set(condition) - set(checks))
    if unknown:
        raise MethodError("unsupportedFilter", f"unknown: {', '.join(unknown)}")
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in condition.items():
        try:
            found[name] = checks[name](value)
        except Bad as bad:
            wrong.append(f"{name} must be {bad}")
    if wrong:
        raise invalid_arguments("; ".join(wrong))
    return found


def limit_of(args: Arguments) -> tuple[int, bool]:
    """Return the limit that applies, and whether it is not the one asked for."""
    asked = args["limit"]
    if asked is None or asked > MAX_LIMIT:
        return MAX_LIMIT, True
    return int(asked), False


def window(found: Sequence[str], args: Arguments) -> tuple[int, list[str]]:
    """Cut the part of a result that was asked for; ``anchorNotFound``."""
    if args["anchor"] is not None:
        if args["anchor"] not in found:
            raise MethodError("anchorNotFound")
        start = max(0, list(found).index(args["anchor"]) + args["anchorOffset"])
    else:
        start = args["position"]
        if start < 0:
            start = max(0, start + len(found))
    limit, _ = limit_of(args)
    return start, list(found[start : start + limit])


def query_response(
    args: Arguments,
    query_state: str,
    part: tuple[int, list[str]],
    total: int | None,
) -> Arguments:
    """Return the arguments of a ``/query`` response."""
    response: Arguments = {
        "accountId": args["accountId"],
        "queryState": query_state,
        "canCalculateChanges": True,
        "position": part[0],
        "ids": part[1],
    }
    if args["calculateTotal"]:
        response["total"] = total
    limit, clamped = limit_of(args)
    if clamped and (args["limit"] is not None or len(part[1]) == limit):
        response["limit"] = limit
    return response


def changes_response(
    args: Arguments,
    query_state: str,
    moved: set[str],
    found: Sequence[str],
) -> Arguments:
    """Return the arguments of a ``/queryChanges`` response.

    ``moved`` are the ids whose place may have changed, or that are gone; ``found``
    is the whole result as it is now.  What did not move keeps its order, so taking
    out all of ``moved`` and putting those that are in ``found`` back at their places
    yields ``found``, whatever the client had (RFC 8620 section 5.6 allows to name
    more than needed).  ``tooManyChanges`` beyond maxChanges.
    """
    added = [
        {"id": text, "index": index}
        for index, text in enumerate(found)
        if text in moved
    ]
    limit = args["maxChanges"]
    if limit is not None and len(moved) + len(added) > limit:
        raise MethodError("tooManyChanges")
    response: Arguments = {
        "accountId": args["accountId"],
        "oldQueryState": args["sinceQueryState"],
        "newQueryState": query_state,
        "removed": sorted(moved),
        "added": added,
    }
    if args["calculateTotal"]:
        response["total"] = len(found)
    return response
