"""Typed arguments: what a method takes is a table, and everything else is refused.

RFC 8620 section 3.6.2: a wrong type, an unknown name or a missing argument is
``invalidArguments``; section 3.3: a default stands for what is left out, and null for
whatever may be null.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from protocols.jmap.wire import dates
from protocols.jmap.wire.errors import invalid_arguments
from protocols.jmap.wire.ids import is_id

MAX_INT = (1 << 53) - 1
Check = Callable[[Any], Any]


class Bad(Exception):
    """A value is not of the type asked for; the text says which that is."""


REQUIRED = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """How to check one argument, and what stands for it when it is left out."""

    check: Check
    default: object = REQUIRED


def boolean(value: Any) -> bool:
    """Boolean."""
    if not isinstance(value, bool):
        raise Bad("a Boolean")
    return value


def integer(value: Any) -> int:
    """Int (RFC 8620 section 1.3): within the exact range of a double."""
    if type(value) is not int or not -MAX_INT <= value <= MAX_INT:
        raise Bad("an Int")
    return value


def unsigned(value: Any) -> int:
    """UnsignedInt."""
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise Bad("an UnsignedInt")
    return value


def positive(value: Any) -> int:
    """UnsignedInt greater than zero (maxChanges)."""
    if unsigned(value) == 0:
        raise Bad("greater than 0")
    return int(value)


def string(value: Any) -> str:
    """String."""
    if not isinstance(value, str):
        raise Bad("a String")
    return value


def identifier(value: Any) -> str:
    """Id; a reference to a creation id (``#k1``) may stand for it."""
    if not isinstance(value, str) or not is_id(value.removeprefix("#")):
        raise Bad("an Id")
    return value


def utc_date(value: Any) -> int:
    """UTCDate, as seconds since the epoch."""
    if not isinstance(value, str) or (seconds := dates.parse_utc(value)) is None:
        raise Bad("a UTCDate")
    return seconds


def anything(value: Any) -> Any:
    """Any JSON value."""
    return value


def mapping(value: Any) -> dict[str, Any]:
    """An object, whatever its members."""
    if not isinstance(value, dict):
        raise Bad("an object")
    return value


def nullable(check: Check) -> Check:
    """Null, or what ``check`` accepts."""

    def checked(value: Any) -> Any:
        return None if value is None else check(value)

    return checked


def list_of(check: Check) -> Check:
    """An array of what ``check`` accepts."""

    def checked(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise Bad("an array")
        return [check(item) for item in value]

    return checked


def map_of(check: Check) -> Check:
    """An object with ids (or creation ids) as names, and values for ``check``."""

    def checked(value: Any) -> dict[str, Any]:
        return {identifier(k): check(v) for k, v in mapping(value).items()}

    return checked


def id_set(value: Any) -> tuple[str, ...]:
    """``Id[Boolean]`` where every value is true: mailboxIds."""
    for name, flag in mapping(value).items():
        if flag is not True or not is_id(name.removeprefix("#")):
            raise Bad("a map of Ids to true")
    return tuple(value)


_KEYWORD_BAD = frozenset('(){]%*"\\')
MAX_KEYWORD = 255


def keyword(value: Any) -> str:
    """Return a keyword in lower case (RFC 8621 section 4.1.1)."""
    text = string(value)
    printable = all("!" <= char <= "~" for char in text)
    if not 1 <= len(text) <= MAX_KEYWORD or not printable or _KEYWORD_BAD & set(text):
        raise Bad("a keyword")
    return text.lower()


def keyword_set(value: Any) -> tuple[str, ...]:
    """``String[Boolean]`` where every value is true: keywords."""
    if any(flag is not True for flag in mapping(value).values()):
        raise Bad("a map of keywords to true")
    return tuple(dict.fromkeys(keyword(name) for name in value))


Schema = Mapping[str, Argument]


def parse(schema: Schema, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Check all arguments; raises MethodError ``invalidArguments`` naming the bad."""
    unknown = [name for name in raw if name not in schema]
    if unknown:
        raise invalid_arguments(f"unknown arguments: {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for name, argument in schema.items():
        try:
            found[name] = _value(argument, name, raw)
        except Bad as bad:
            wrong.append(f"{name} must be {bad}")
    if wrong:
        raise invalid_arguments("; ".join(wrong))
    return found


def _value(argument: Argument, name: str, raw: Mapping[str, Any]) -> Any:
    value = raw.get(name, argument.default)
    if value is REQUIRED:
        raise Bad("given")
    if value is argument.default:
        return value
    return argument.check(value)
