"""I-JSON in, JSON out (RFC 7493, RFC 8620 section 1.5).

Valid UTF-8, no lone surrogates, no duplicate member names, no NaN, bounded depth and
bounded number of values, so that ten megabytes of brackets are not ten million objects.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from protocols.jmap.wire.errors import RequestError, limit, not_json

MAX_VALUES = 250_000
MAX_DEPTH = 128
BIG = 64 * 1024  # octets: above it, parse off the loop

_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate member name")
    return found


_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique)


def loads(data: bytes) -> Any:
    """Parse a whole document; raises RequestError ``notJSON`` or ``limit``."""
    if _structure(data) > MAX_VALUES:
        raise limit("maxSizeRequest", "too many values in one document", 413)
    try:
        value = orjson.loads(data)
        _UNIQUE.decode(data.decode())  # orjson keeps the last of two equal names
    except (ValueError, RecursionError) as error:
        raise not_json(_reason(error)) from error
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise not_json("nested too deeply")
    return value


def _structure(data: bytes) -> int:
    """Count values, roughly from above; exactly only where that matters."""
    count = _tokens(data)
    return count if count <= MAX_VALUES else _tokens(_STRINGS.sub(b"", data))


def _tokens(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _reason(error: Exception) -> str:
    if isinstance(error, orjson.JSONDecodeError):
        return f"not valid JSON: {error.msg} at octet {error.pos}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"not valid I-JSON: {error}"


def depth(value: Any) -> int:
    """Return how deeply arrays and objects are nested, without recursion."""
    level, found = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                below.extend(item.values())
            elif type(item) is list:
                below.extend(item)
        found += bool(below)
        level = below
    return found


class Rendered:
    """A value that is JSON already: copied into the answer, parsed only on demand."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def plain(self) -> Any:
        """Return the value itself (a back reference points into it)."""
        return orjson.loads(self.data)


def _fragment(value: object) -> orjson.Fragment:
    if isinstance(value, Rendered):
        return orjson.Fragment(value.data)
    raise TypeError(f"{type(value).__name__} is not JSON")


def dumps(value: Any) -> bytes:
    """Encode; values may be ``Rendered`` before."""
    return orjson.dumps(value, default=_fragment)


def problem(error: RequestError) -> bytes:
    """Encode the problem document of a refused request."""
    return orjson.dumps(error.problem())
