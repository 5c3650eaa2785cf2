"""Address lists of header fields (RFC 5322 section 3.4), hostile ones included.

Strict envelope addresses are another matter: see ``addresses``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mailserverd.mail.words import unfold

MAX_ADDRESSES = 10_000
MAX_ODD = 128 << 10  # octets read of a list from its first unusual address on


class Address(NamedTuple):
    """A mailbox or a group marker, in the shape of IMAP's ENVELOPE.

    Octets as they stand (encoded words kept), quoting removed.  A group starts
    with ``host`` None and its name in ``mailbox``, and ends with both None
    (RFC 9051 section 7.5.2).  A mailbox without a domain has ``host`` b"".
    """

    name: bytes  # display name, or the comment beside it; b"" when absent
    route: bytes  # obsolete source route "@a,@b", b"" when absent
    mailbox: bytes | None
    host: bytes | None


GROUP_END = Address(b"", b"", None, None)

# The forms that nearly all mail uses: one step per address.
_SIMPLE = re.compile(
    rb"[ \t]*+(?:"
    rb'(?:"([^"\\]*+)"[ \t]*+|([^\x00-\x1f"(),:;<>@\[\]\\]*+))'
    rb"<([^\x00-\x20\"(),:;<>@\[\]\\]++)@([^\x00-\x20\"(),:;<>@\\]++)>"
    rb"|([^\x00-\x20\"(),:;<>@\[\]\\]++)@([^\x00-\x20\"(),:;<>@\\]++)"
    rb")[ \t]*+(?:,|$)"
)
_TOKEN = re.compile(
    rb'"(?P<quoted>[^"\\]*+(?:\\.[^"\\]*+)*+)(?:"|\\?$)'
    rb"|(?P<space>[ \t\x00-\x1f]++)"
    rb"|(?P<literal>\[[^\[\]\\,;<>]*+\])"
    rb"|(?P<special>[<>,:;@(])"
    rb'|(?P<atom>[^\x00-\x20"<>,:;@(\[]++|\[)',
    re.DOTALL,
)
_COMMENT_EDGE = re.compile(rb"\\.|[()]", re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)


def parse_addresses(raw: bytes) -> list[Address]:
    """Parse an address list; best effort, never raises.

    At most MAX_ADDRESSES are returned.  Comments are dropped, save one beside
    an address without display name, which becomes its name.
    """
    value = unfold(raw)
    found: list[Address] = []
    position, end = 0, len(value)
    while position < end and len(found) < MAX_ADDRESSES:
        match = _SIMPLE.match(value, position)
        if match is None:
            return _parse_slowly(value, position, found)
        quoted, phrase, local, host, bare, bare_host = match.groups()
        if bare is not None:
            found.append(Address(b"", b"", bare, bare_host))
        else:
            name = (phrase if quoted is None else quoted).strip(b" \t")
            found.append(Address(name, b"", local, host))
        position = match.end()
    return found


def _parse_slowly(value: bytes, position: int, found: list[Address]) -> list[Address]:
    parser = _Parser(found)
    end = min(len(value), position + MAX_ODD)
    value = value[:end]
    while position < end and len(found) < MAX_ADDRESSES:
        match = _TOKEN.match(value, position)
        if match is None:  # pragma: no cover - the alternatives cover every octet
            position += 1
            continue
        position = match.end()
        kind = match.lastgroup
        if kind != "special":
            parser.word(kind or "", match[kind or 0])
        elif match[0] == b"(":
            position = _comment(value, position, parser)
        else:
            parser.special(match[0])
    parser.finish()
    return found[:MAX_ADDRESSES]


def _comment(value: bytes, start: int, parser: _Parser) -> int:
    """Take the comment whose bracket was just read; return where it ends."""
    depth = 1
    for edge in () if parser.unclosed else _COMMENT_EDGE.finditer(value, start):
        if edge[0] == b"(":
            depth += 1
        elif edge[0] == b")":
            depth -= 1
            if not depth:
                parser.comment = _unquote(value[start : edge.start()]).strip()
                return edge.end()
    parser.unclosed = True  # text, as are all later brackets: one look is enough
    parser.word("atom", b"(")
    return start


def _unquote(text: bytes) -> bytes:
    return _QUOTED_PAIR.sub(rb"\1", text) if b"\\" in text else text


class _Parser:
    """Collects words until a comma, semicolon or colon decides what they were."""

    def __init__(self, found: list[Address]) -> None:
        self._found = found
        self._in_group = False
        self._words: list[tuple[bytes, bytes]] = []  # (kind, text), outside <>
        self._angle: list[tuple[bytes, bytes]] | None = None  # inside <>
        self._inside = False
        self._route: bool | None = None  # a source route is open; None: not yet known
        self.comment = b""
        self.unclosed = False

    def word(self, kind: str, text: bytes) -> None:
        """Take an atom, quoted string, domain literal or white space."""
        if kind == "quoted":
            text = _unquote(text)
        elif kind == "space":
            text = b" "
        if kind != "space" and self._route is None:
            self._route = False
        self._current().append((kind.encode(), text))

    def _current(self) -> list[tuple[bytes, bytes]]:
        if self._inside and self._angle is not None:
            return self._angle
        return self._words

    def special(self, char: bytes) -> None:
        """Take one of ``< > , : ; @``."""
        if self._inside:
            self._special_inside(char)
        elif char == b"<":
            if self._angle is not None:  # "<a@b> <c@d>": the comma was forgotten
                self._flush()
            self._inside, self._angle, self._route = True, [], None
        elif char in b",;":
            self._flush()
            self._end_group(char)
        elif char == b":" and self._starts_group():
            self._start_group()
        elif char != b">":
            self._words.append((b"special", char))

    def _special_inside(self, char: bytes) -> None:
        if char == b">":
            self._inside = False
        elif char == b";" or (char == b"," and not self._route):
            self._inside = False  # the bracket was never closed
            self._flush()
            self._end_group(char)
        else:
            if char == b"@" and self._route is None:
                self._route = True
            elif char == b":":
                self._route = False
            self._current().append((b"special", char))

    def _starts_group(self) -> bool:
        return (
            not self._in_group
            and self._angle is None
            and not any(
                text == b"@" for kind, text in self._words if kind == b"special"
            )
        )

    def _start_group(self) -> None:
        name = _join(self._words) or self.comment
        self._found.append(Address(b"", b"", name, None))
        self._words, self.comment = [], b""
        self._in_group = True

    def _end_group(self, char: bytes) -> None:
        if char == b";" and self._in_group:
            self._found.append(GROUP_END)
            self._in_group = False

    def _flush(self) -> None:
        words, angle, comment = self._words, self._angle, self.comment
        self._words, self._angle, self.comment = [], None, b""
        if angle is not None:
            address = _addr_spec(angle, _join(words) or comment)
        elif any(kind != b"space" for kind, _ in words):
            address = _bare(words, comment)
        else:
            return
        if address is not None:
            self._found.append(address)

    def finish(self) -> None:
        """Take the end of the value."""
        self._inside = False
        self._flush()
        self._end_group(b";")


def _join(words: list[tuple[bytes, bytes]]) -> bytes:
    return b" ".join(b"".join(text for _, text in words).split())


def _bare(words: list[tuple[bytes, bytes]], comment: bytes) -> Address | None:
    """``a@b``, or ``Some Name a@b`` whose brackets were forgotten."""
    at = max((i for i, w in enumerate(words) if w == (b"special", b"@")), default=-1)
    if at < 0:
        local = _join(words)
        return Address(comment, b"", local, b"") if local else None
    start, end = at, at + 1
    while start and words[start - 1][0] == b"space":
        start -= 1
    while start and words[start - 1][0] != b"space":
        start -= 1
    while end < len(words) and words[end][0] == b"space":
        end += 1
    while end < len(words) and words[end][0] != b"space":
        end += 1
    name = _join(words[:start]) or _join(words[end:]) or comment
    return _addr_spec(words[start:end], name)


def _addr_spec(words: list[tuple[bytes, bytes]], name: bytes) -> Address | None:
    """The inside of angle brackets: route, local part, domain (all optional)."""
    words = [word for word in words if word[0] != b"space"]
    route = b""
    if words and words[0] == (b"special", b"@"):
        colon = next((i for i, w in enumerate(words) if w == (b"special", b":")), 0)
        route = b"".join(text for _, text in words[:colon])
        words = words[colon + 1 :] if colon else words
    at = max((i for i, w in enumerate(words) if w == (b"special", b"@")), default=-1)
    if at < 0:
        local, host = b"".join(text for _, text in words), b""
    else:
        local = b"".join(text for _, text in words[:at])
        host = b"".join(text for _, text in words[at + 1 :])
    if not (local or host or name):
        return None
    return Address(name, route, local, host)
