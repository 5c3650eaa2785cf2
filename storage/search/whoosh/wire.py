"""What the daemon and its search workers say to one another.

A frame is the length of its JSON head and of the whole (both 4 octets, big-endian),
the head, and after it the blobs whose lengths the head lists under "sizes".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.core.errors import Kind, MailError
from storage.text import FIELDS, And, Not, Or, Query, Term

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = struct.Struct(">II")
MAX_FRAME = 256 << 20
_MAX_DEPTH = 32
_MAX_NODES = 2000
Head = dict[str, Any]


def encode(head: Head, blobs: Sequence[bytes] = ()) -> bytes:
    """Return a frame."""
    text = orjson.dumps(head | {"sizes": [len(blob) for blob in blobs]})
    length = len(text) + sum(map(len, blobs))
    return b"".join((PREFIX.pack(len(text), length), text, *blobs))


def lengths(prefix: bytes) -> tuple[int, int]:
    """Return (octets of the head, octets that follow the prefix)."""
    head, length = PREFIX.unpack(prefix)
    if head > length or length > MAX_FRAME:
        raise MailError(Kind.UNAVAILABLE, "search worker talks nonsense")
    return head, length


def decode(data: bytes, head_length: int) -> tuple[Head, list[bytes]]:
    """Return (head, blobs) of what followed a prefix."""
    head: Head = orjson.loads(data[:head_length])
    blobs, at = [], head_length
    for size in head.pop("sizes"):
        blobs.append(data[at : at + size])
        at += size
    return head, blobs


def encode_query(query: Query) -> list[Any]:
    """Return a query as JSON."""
    match query:
        case Term(field, words, phrase, prefix):
            return ["term", field, list(words), phrase, prefix]
        case And(parts):
            return ["and", [encode_query(part) for part in parts]]
        case Or(parts):
            return ["or", [encode_query(part) for part in parts]]
        case Not(part):
            return ["not", encode_query(part)]


def decode_query(value: list[Any]) -> Query:
    """Return the query that ``encode_query`` wrote."""
    match value:
        case ["term", str(field), list(words), bool(phrase), bool(prefix)]:
            return Term(field, tuple(words), phrase, prefix)
        case ["and", list(parts)]:
            return And(tuple(map(decode_query, parts)))
        case ["or", list(parts)]:
            return Or(tuple(map(decode_query, parts)))
        case ["not", list(part)]:
            return Not(decode_query(part))
        case _:
            raise MailError(Kind.INVALID, "not a query")


def check_query(query: Query) -> None:
    """INVALID for a query that no engine should be asked: too deep, too large, an
    unknown field, a term without words."""
    nodes, level = 0, [query]
    for _ in range(_MAX_DEPTH):
        nodes += len(level)
        level = [part for node in level for part in _parts(node)]
        if nodes + len(level) > _MAX_NODES:
            break
        if not level:
            return
    raise MailError(Kind.INVALID, "search is too complex")


def _parts(query: Query) -> tuple[Query, ...]:
    match query:
        case Term():
            if query.field not in (*FIELDS, "text") or not query.words:
                raise MailError(Kind.INVALID, "search names an unknown field")
            return ()
        case Not(part):
            return (part,)
        case And(parts) | Or(parts):
            return parts
