"""A strict checker of IMAP ENVELOPE and BODYSTRUCTURE syntax (RFC 9051 section 9).

Written from the ABNF, apart from the code that renders: it raises SyntaxError
at the first octet that the grammar does not allow, and returns nested lists.
"""

from __future__ import annotations

import re

_QUOTED = re.compile(
    rb'"((?:[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x5b\x5d-\x7f]|\\["\\])*)"'
)
_LITERAL = re.compile(rb"\{(0|[1-9][0-9]*)\}\r\n")
_NUMBER = re.compile(rb"0|[1-9][0-9]*")
_ENVELOPE_ADDRESSES = 6

Value = "bytes | int | None | list[Value]"


class Reader:
    """Reads tokens; every method moves past what it returns."""

    def __init__(self, wire: bytes) -> None:
        self.wire = wire
        self.place = 0

    def fail(self, wanted: str) -> SyntaxError:
        near = self.wire[max(0, self.place - 30) : self.place + 30]
        return SyntaxError(f"{wanted} expected at {self.place} near {near!r}")

    def peek(self, text: bytes) -> bool:
        return self.wire.startswith(text, self.place)

    def take(self, text: bytes) -> None:
        if not self.peek(text):
            raise self.fail(repr(text))
        self.place += len(text)

    def string(self) -> bytes:
        if match := _QUOTED.match(self.wire, self.place):
            self.place = match.end()
            return re.sub(rb"\\(.)", rb"\1", match[1])
        if match := _LITERAL.match(self.wire, self.place):
            start, size = match.end(), int(match[1])
            text = self.wire[start : start + size]
            if len(text) != size or b"\x00" in text:
                raise self.fail("CHAR8 literal")
            self.place = start + size
            return text
        raise self.fail("string")

    def nstring(self) -> bytes | None:
        if self.peek(b"NIL"):
            self.place += 3
            return None
        return self.string()

    def number(self) -> int:
        match = _NUMBER.match(self.wire, self.place)
        if match is None:
            raise self.fail("number")
        self.place = match.end()
        return int(match[0])

    def space(self) -> None:
        self.take(b" ")

    def end(self) -> None:
        if self.place != len(self.wire):
            raise self.fail("end")


def envelope(wire: bytes) -> list[object]:
    """Check a whole ENVELOPE; return its ten values."""
    reader = Reader(wire)
    values = _envelope(reader)
    reader.end()
    return values


def _envelope(reader: Reader) -> list[object]:
    reader.take(b"(")
    values: list[object] = [reader.nstring()]
    reader.space()
    values.append(reader.nstring())
    for _ in range(_ENVELOPE_ADDRESSES):
        reader.space()
        values.append(_addresses(reader))
    for _ in range(2):
        reader.space()
        values.append(reader.nstring())
    reader.take(b")")
    return values


def _addresses(reader: Reader) -> list[list[bytes | None]] | None:
    if reader.peek(b"NIL"):
        reader.take(b"NIL")
        return None
    reader.take(b"(")
    found = []
    while not reader.peek(b")"):
        reader.take(b"(")
        address = [reader.nstring()]
        for _ in range(3):
            reader.space()
            address.append(reader.nstring())
        reader.take(b")")
        found.append(address)
    if not found:
        raise reader.fail("address")
    reader.take(b")")
    return found


def bodystructure(wire: bytes, *, extended: bool = True) -> list[object]:
    """Check a whole BODYSTRUCTURE (or BODY, when not extended); return its tree.

    A multipart is ``[[children], subtype, ...]``, a single part ``[type, subtype,
    params, id, description, encoding, size, ...]``.
    """
    reader = Reader(wire)
    tree = _body(reader, extended)
    reader.end()
    return tree


def _body(reader: Reader, extended: bool) -> list[object]:
    reader.take(b"(")
    values = (
        _multipart(reader, extended)
        if reader.peek(b"(")
        else _single_part(reader, extended)
    )
    reader.take(b")")
    return values


def _multipart(reader: Reader, extended: bool) -> list[object]:
    children = []
    while reader.peek(b"("):
        children.append(_body(reader, extended))
    reader.space()
    values: list[object] = [children, reader.string()]
    if extended:
        reader.space()
        values.append(_params(reader))
        values += _common_extension(reader)
    return values


def _single_part(reader: Reader, extended: bool) -> list[object]:
    main = reader.string()
    reader.space()
    sub = reader.string()
    reader.space()
    values: list[object] = [main, sub, _params(reader)]
    for _ in range(2):
        reader.space()
        values.append(reader.nstring())
    reader.space()
    values.append(reader.string())
    reader.space()
    values.append(reader.number())
    if main.lower() == b"message" and sub.lower() in {b"rfc822", b"global"}:
        reader.space()
        values.append(_envelope(reader))
        reader.space()
        values.append(_body(reader, extended))
    if main.lower() == b"text" or len(values) > 7:
        reader.space()
        values.append(reader.number())
    if extended:
        reader.space()
        values.append(reader.nstring())
        values += _common_extension(reader)
    return values


def _params(reader: Reader) -> list[tuple[bytes, bytes]] | None:
    if reader.peek(b"NIL"):
        reader.take(b"NIL")
        return None
    reader.take(b"(")
    pairs = []
    while True:
        name = reader.string()
        reader.space()
        pairs.append((name, reader.string()))
        if not reader.peek(b" "):
            break
        reader.space()
    reader.take(b")")
    return pairs


def _common_extension(reader: Reader) -> list[object]:
    """Disposition, language, location."""
    reader.space()
    disposition: object = None
    if reader.peek(b"NIL"):
        reader.take(b"NIL")
    else:
        reader.take(b"(")
        word = reader.string()
        reader.space()
        disposition = (word, _params(reader))
        reader.take(b")")
    reader.space()
    language: object
    if reader.peek(b"("):
        reader.take(b"(")
        tags = [reader.string()]
        while reader.peek(b" "):
            reader.space()
            tags.append(reader.string())
        reader.take(b")")
        language = tags
    else:
        language = reader.nstring()
    reader.space()
    return [disposition, language, reader.nstring()]


# --- FETCH responses -----------------------------------------------------------------

_FETCH = re.compile(rb"\* ([1-9][0-9]*) FETCH \(")
_ITEM = re.compile(
    rb"(?:BODY|BINARY)\[[0-9A-Z.() -]*\](?:<[0-9]+>)?|[A-Z0-9.]+(?= )", re.IGNORECASE
)
_FLAG = re.compile(rb"\\?[A-Za-z0-9$!#&'+,./:;<=>?@^_`|~-]+")
_NUMBERS = {b"UID", b"RFC822.SIZE"}


def fetch(wire: bytes) -> tuple[int, dict[bytes, object]]:
    """Check a whole FETCH response; return its sequence number and its items."""
    match = _FETCH.match(wire)
    if match is None:
        raise SyntaxError(f"FETCH response expected, not {wire[:60]!r}")
    reader = Reader(wire)
    reader.place = match.end()
    items: dict[bytes, object] = {}
    while True:
        item = _ITEM.match(wire, reader.place)
        if item is None:
            raise reader.fail("fetch item")
        reader.place = item.end()
        reader.space()
        items[item[0].upper()] = _item(reader, item[0].upper())
        if not reader.peek(b" "):
            break
        reader.space()
    reader.take(b")")
    reader.end()
    return int(match[1]), items


def _item(reader: Reader, name: bytes) -> object:
    if name in _NUMBERS:
        return reader.number()
    if name == b"ENVELOPE":
        return _envelope(reader)
    if name in {b"BODYSTRUCTURE", b"BODY"}:
        return _body(reader, extended=name != b"BODY")
    if name == b"FLAGS":
        return _flags(reader)
    if name.startswith(b"BINARY["):
        return _binary(reader)
    return reader.nstring()


def _flags(reader: Reader) -> list[bytes]:
    reader.take(b"(")
    found = []
    while match := _FLAG.match(reader.wire, reader.place):
        found.append(match[0])
        reader.place = match.end()
        if not reader.peek(b" "):
            break
        reader.space()
    reader.take(b")")
    return found


def _binary(reader: Reader) -> bytes | None:
    """A literal8 may hold NUL."""
    if not reader.peek(b"~"):
        return reader.nstring()
    reader.take(b"~")
    match = _LITERAL.match(reader.wire, reader.place)
    if match is None:
        raise reader.fail("literal8")
    reader.place = match.end() + int(match[1])
    return reader.wire[match.end() : reader.place]
