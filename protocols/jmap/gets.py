"""What all ``/get`` methods share (RFC 8620 section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from protocols.jmap.method import ACCOUNT
from protocols.jmap.wire.arguments import (
    Argument,
    Schema,
    identifier,
    list_of,
    nullable,
    string,
)
from protocols.jmap.wire.errors import MethodError, invalid_arguments

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context

TAKES: Schema = {
    "accountId": ACCOUNT,
    "ids": Argument(nullable(list_of(identifier)), None),
    "properties": Argument(nullable(list_of(string)), None),
}
Parse = Callable[[str], int | None]


def numbers(
    context: Context, given: Iterable[str], parse: Parse
) -> tuple[dict[int, str], list[str]]:
    """Return number -> id of what may exist, each once, and ids that never can.

    ``requestTooLarge`` beyond maxObjectsInGet.
    """
    wanted = list(dict.fromkeys(given))
    if len(wanted) > context.limits.max_objects_in_get:
        raise MethodError("requestTooLarge", "more ids than maxObjectsInGet")
    found: dict[int, str] = {}
    missing: list[str] = []
    for text in wanted:
        number = parse(context.real(text))
        if number is None:
            missing.append(text)
        else:
            found[number] = text
    return found, missing


def properties(given: list[str] | None, known: Collection[str]) -> frozenset[str]:
    """Return the properties to show, always with the id; ``invalidArguments``."""
    if given is None:
        return frozenset(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise invalid_arguments(f"unknown properties: {', '.join(unknown)}")
    return frozenset(given) | {"id"}


def chosen(full: dict[str, Any], wanted: frozenset[str]) -> dict[str, Any]:
    """Leave only the properties asked for."""
    return {name: value for name, value in full.items() if name in wanted}


def response(
    args: Arguments, state: str, found: list[Any], missing: list[str]
) -> Arguments:
    """Return the arguments of the response."""
    return {
        "accountId": args["accountId"],
        "state": state,
        "list": found,
        "notFound": missing,
    }
