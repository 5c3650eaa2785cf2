"""ENVELOPE, BODYSTRUCTURE and BODY as IMAP wire bytes (RFC 9051 section 7.5.2).

Valid syntax for any input: what a quoted string cannot carry travels as a
literal; NUL and line ends are dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.mail.addrlist import Address
    from mailserverd.mail.model import Part

_PLAIN = bytes(set(range(1, 128)) - set(b'\r\n"\\'))  # as it is inside quotes
_LONGEST_QUOTED = 1000  # longer ones as literals: clients limit their lines
_NO_PARTS = b'("text" "plain" NIL NIL NIL "7bit" 0 0)'  # a list may not be empty
_NO_PARTS_EXTENDED = b'("text" "plain" NIL NIL NIL "7bit" 0 0 NIL NIL NIL NIL)'
NO_ENVELOPE = b"(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)"


def string(text: bytes) -> bytes:
    """Return a quoted string, or a literal where quotes cannot carry it."""
    if not text.translate(None, _PLAIN) and len(text) <= _LONGEST_QUOTED:
        return b'"%b"' % text
    text = text.translate(None, b"\r\n\x00")
    if text.isascii() and len(text) <= _LONGEST_QUOTED:
        return b'"%b"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b"{%d}\r\n%b" % (len(text), text)


def nstring(text: bytes | str | None) -> bytes:
    """Return a string, or NIL for None and the empty str."""
    if text is None or text == "":
        return b"NIL"
    return string(text if isinstance(text, bytes) else text.encode())


def render_envelope(fields: dict[bytes, bytes], wires: dict[bytes, bytes]) -> bytes:
    """Render ENVELOPE from unfolded values by lower-case field name.

    ``wires`` holds the address fields as ``render_addresses`` gives them.  Encoded
    words stay encoded; Sender and Reply-To default to From.
    """
    author = wires.get(b"from", b"NIL")
    sender = wires.get(b"sender", b"NIL")
    reply_to = wires.get(b"reply-to", b"NIL")
    return b"(%b %b %b %b %b %b %b %b %b %b)" % (
        _field(fields, b"date"),
        _field(fields, b"subject"),
        author,
        author if sender == b"NIL" else sender,
        author if reply_to == b"NIL" else reply_to,
        wires.get(b"to", b"NIL"),
        wires.get(b"cc", b"NIL"),
        wires.get(b"bcc", b"NIL"),
        _field(fields, b"in-reply-to"),
        _field(fields, b"message-id"),
    )


def _field(fields: dict[bytes, bytes], name: bytes) -> bytes:
    value = fields.get(name)
    return b"NIL" if value is None else string(value.strip(b" \t"))


def render_addresses(addresses: list[Address]) -> bytes:
    """Render an address field of ENVELOPE."""
    if not addresses:
        return b"NIL"
    return b"(%b)" % b"".join([_address(address) for address in addresses])


def _address(address: Address) -> bytes:
    name, route, mailbox, host = address
    return b"(%b %b %b %b)" % (
        string(name) if name else b"NIL",
        string(route) if route else b"NIL",
        b"NIL" if mailbox is None else string(mailbox),
        b"NIL" if host is None else string(host),
    )


def children_of(parts: Sequence[Part]) -> list[list[int]]:
    """Return, for every part, the indexes of the parts directly inside it."""
    children: list[list[int]] = [[] for _ in parts]
    for index, part in enumerate(parts):
        if part.parent >= 0:
            children[part.parent].append(index)
    return children


def render_bodystructure(parts: Sequence[Part]) -> bytes:
    """Render BODYSTRUCTURE, extension data included."""
    return _Renderer(parts, extended=True).body(0)


def render_body(parts: Sequence[Part]) -> bytes:
    """Render the non-extended BODY from the part table."""
    return _Renderer(parts, extended=False).body(0)


class _Renderer:
    def __init__(self, parts: Sequence[Part], *, extended: bool) -> None:
        self._parts = parts
        self._children = children_of(parts)
        self._extended = extended
        self._none = _NO_PARTS_EXTENDED if extended else _NO_PARTS

    def body(self, index: int) -> bytes:
        part = self._parts[index]
        if part.type == "multipart":
            return self._multipart(part, self._children[index])
        wire = b"(%b %b %b %b %b %b %d" % (
            nstring(part.type),
            nstring(part.subtype),
            _params(part.params),
            nstring(part.content_id),
            nstring(part.description),
            nstring(part.encoding),
            part.size,
        )
        if part.type == "text":
            wire += b" %d" % part.lines
        elif part.type == "message" and part.subtype in {"rfc822", "global"}:
            inside = self._children[index]
            body = self.body(inside[0]) if inside else self._none
            wire += b" %b %b %d" % (part.envelope or NO_ENVELOPE, body, part.lines)
        if not self._extended:
            return wire + b")"
        return b"%b %b %b)" % (wire, nstring(part.md5), _extension(part))

    def _multipart(self, part: Part, inside: list[int]) -> bytes:
        bodies = b"".join([self.body(child) for child in inside]) or self._none
        if not self._extended:
            return b"(%b %b)" % (bodies, nstring(part.subtype))
        return b"(%b %b %b %b)" % (
            bodies,
            nstring(part.subtype),
            _params(part.params),
            _extension(part),
        )


def _extension(part: Part) -> bytes:
    """The extension data that single parts and multiparts share."""
    if not (part.disposition or part.language or part.location):
        return b"NIL NIL NIL"
    disposition = b"NIL"
    if part.disposition:
        disposition = b"(%b %b)" % (
            nstring(part.disposition),
            _params(part.disposition_params),
        )
    tags = b" ".join([nstring(tag) for tag in part.language])
    language = b"(%b)" % tags if tags else b"NIL"
    return b"%b %b %b" % (disposition, language, nstring(part.location))


def _params(params: tuple[tuple[str, str], ...]) -> bytes:
    if not params:
        return b"NIL"
    pairs = [
        b"%b %b" % (string(name.encode()), string(value.encode()))
        if value.isascii()
        else _extended_param(name, value)
        for name, value in params
    ]
    return b"(%b)" % b" ".join(pairs)


def _extended_param(name: str, value: str) -> bytes:
    """A value beyond ASCII in the extended form of RFC 2231 section 4."""
    encoded = f"utf-8''{quote(value, safe='')}".encode()
    return b"%b %b" % (string(f"{name}*".encode()), string(encoded))
