"""References to results of earlier calls in a request (RFC 8620 section 3.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocols.jmap.wire.errors import MethodError, invalid_arguments
from protocols.jmap.wire.ijson import Rendered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from protocols.jmap.wire.request import Invocation

MAX_RESOLVED = 100_000  # values that one reference may yield
MAX_TOKENS = 32  # in a path
VALUE = 16  # octets that any value weighs, whatever is in it


def resolve(
    arguments: dict[str, Any],
    responses: Sequence[Invocation],
    spend: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Replace every ``#name`` argument by the value it refers to.

    ``spend`` is told what each value weighs, and may refuse it: an answer of two
    references to the answer before doubles with every call.

    Raises ``invalidResultReference``, or ``invalidArguments`` when a name is given
    both plainly and as a reference.
    """
    if not any(name[:1] == "#" for name in arguments):
        return arguments
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        plain = name[1:] if name[:1] == "#" else name
        if plain in found:
            raise invalid_arguments(f"{plain} is given twice")
        if plain == name:
            found[plain] = value
            continue
        found[plain] = _reference(value, responses)
        if spend is not None:
            spend(weight(found[plain]))
    return found


def weight(value: Any) -> int:
    """Return about how many octets a value takes, as JSON or in memory."""
    total, level = 0, [value]
    while level:
        total += VALUE * len(level)
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, Rendered):
                total += len(item.data)
        level = below
    return total


def _invalid(reason: str) -> MethodError:
    return MethodError("invalidResultReference", reason)


def _reference(value: Any, responses: Sequence[Invocation]) -> Any:
    match value:
        case {"resultOf": str(call_id), "name": str(name), "path": str(path)}:
            pass
        case _:
            raise _invalid("a ResultReference has resultOf, name and path")
    response = next((r for r in responses if r.call_id == call_id), None)
    if response is None or response.name != name:
        raise _invalid(f"no {name} response of call {call_id}")
    return pointer(response.arguments, path)


def tokens(path: str) -> list[str]:
    """Split a JSON Pointer (RFC 6901 section 3) into its unescaped tokens."""
    if not path:
        return []
    if path[0] != "/":
        raise _invalid("a path starts with a slash")
    found = path[1:].split("/")
    if len(found) > MAX_TOKENS:
        raise _invalid("the path is too long")
    return [unescape(token) for token in found]


def unescape(token: str) -> str:
    """Undo ``~1`` and ``~0``; anything else after a tilde is an error."""
    if "~" not in token:
        return token
    if token.count("~") != token.count("~0") + token.count("~1"):
        raise _invalid("a tilde must be followed by 0 or 1")
    return token.replace("~1", "/").replace("~0", "~")


def pointer(value: Any, path: str) -> Any:
    """Evaluate a path, where ``*`` maps through an array and flattens one level."""
    return _walk(value, tokens(path), 0)


def _walk(value: Any, path: list[str], at: int) -> Any:
    for index in range(at, len(path)):
        token = path[index]
        if isinstance(value, Rendered):
            value = value.plain()
        if isinstance(value, dict):
            if token not in value:
                raise _invalid(f"there is no member {token!r}")
            value = value[token]
        elif isinstance(value, list):
            if token == "*":
                return _map(value, path, index + 1)
            value = value[_index(token, len(value))]
        else:
            raise _invalid(f"{token!r} points into a plain value")
    return value.plain() if isinstance(value, Rendered) else value


def _map(items: list[Any], path: list[str], at: int) -> list[Any]:
    found: list[Any] = []
    for item in items:
        result = _walk(item, path, at)
        if isinstance(result, list):
            found.extend(result)
        else:
            found.append(result)
        if len(found) > MAX_RESOLVED:
            raise _invalid("the reference yields too many values")
    return found


def _index(token: str, length: int) -> int:
    if not token.isascii() or not token.isdecimal() or token != str(int(token[:9])):
        raise _invalid(f"{token!r} is not an array index")
    if int(token) >= length:
        raise _invalid(f"there is no item {token}")
    return int(token)
