"""Content-Transfer-Encodings, decoded tolerantly: whole bodies and streams.

RFC 2045 section 6; uuencode as ``uuencode`` writes it.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(set(range(256)) - set(_ALPHABET) - set(b"="))
_JUNK = _ALPHABET + b"= \t\r\n"
_TRAILING_SPACE = re.compile(rb"(?<![ \t])[ \t]++(?=\r?\n)")
_BAD_ESCAPE = re.compile(rb"=(?![0-9A-Fa-f]{2}|\r?\n|\Z)")
_UU_BEGIN = re.compile(rb"(?m)^begin(?:-base64)? [0-7]{3,4} [^\n]*\n")
# The last four are misspellings of the first two that are sent.
_IDENTITY = frozenset(
    {"7bit", "8bit", "binary", "", "7-bit", "8-bit", "7bits", "8bits"}
)
_UUENCODE = frozenset({"uuencode", "x-uuencode", "x-uue", "uue"})
_HELD_MAX = 1024  # octets of an unfinished line that a stream decoder holds


def decode_transfer(raw: bytes, encoding: str) -> tuple[bytes, bool]:
    """Decode a body; return the octets and whether something was wrong.

    An unknown encoding is taken as none, and counts as a problem (RFC 8621
    section 4.1.4).  Damaged input gives what can be read of it.
    """
    if encoding in _IDENTITY:
        return raw, False
    if encoding == "base64":
        return _base64(raw)
    if encoding == "quoted-printable":
        return _quoted_printable(raw)
    if encoding in _UUENCODE:
        return _uuencode(raw)
    return raw, True


def is_identity(encoding: str) -> bool:
    """Return whether the encoding leaves the octets as they are."""
    return encoding in _IDENTITY


def _base64(raw: bytes) -> tuple[bytes, bool]:
    clean = raw.translate(None, _NOT_BASE64)
    junk = bool(raw.translate(None, _JUNK))
    body = clean.rstrip(b"=")
    if b"=" not in body:
        data, bad = _quads(body)
        return data, bad or junk or len(clean) % 4 != 0
    decoded = [_quads(piece) for piece in body.split(b"=") if piece]
    return b"".join(data for data, _ in decoded), True


def _quads(clean: bytes) -> tuple[bytes, bool]:
    """Decode alphabet-only base64 without its padding."""
    extra = len(clean) % 4
    if extra == 1:  # six bits are no octet
        return binascii.a2b_base64(clean[:-1]), True
    return binascii.a2b_base64(clean + b"=" * (-extra % 4)), False


def _quoted_printable(raw: bytes) -> tuple[bytes, bool]:
    if b" \n" in raw or b" \r\n" in raw or b"\t\n" in raw or b"\t\r\n" in raw:
        raw = _TRAILING_SPACE.sub(b"", raw)  # added in transport: section 6.7 (3)
    return binascii.a2b_qp(raw), _BAD_ESCAPE.search(raw) is not None


def _uuencode(raw: bytes) -> tuple[bytes, bool]:
    begin = _UU_BEGIN.search(raw)
    if begin is None:
        return raw, True
    out: list[bytes] = []
    problem = False
    for line in _lines(raw, begin.end()):
        if line.startswith(b"end"):
            return b"".join(out), problem
        data, bad = _uu_line(line)
        out.append(data)
        problem |= bad
    return b"".join(out), True


def _lines(raw: bytes, start: int) -> Iterator[bytes]:
    size = len(raw)
    while start < size:
        end = raw.find(b"\n", start)
        end = size if end < 0 else end
        yield raw[start:end].rstrip(b"\r")
        start = end + 1


def _uu_line(line: bytes) -> tuple[bytes, bool]:
    if not line:
        return b"", False
    count = (line[0] - 32) & 63
    needed = (count * 4 + 2) // 3
    try:
        return binascii.a2b_uu(line[: 1 + needed]), False
    except binascii.Error:
        clean = bytes([c if 32 <= c <= 96 else 32 for c in line[1 : 1 + needed]])
        return binascii.a2b_uu(bytes([32 + count]) + clean), True


class _Stream(Protocol):
    problem: bool

    def feed(self, chunk: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class TransferDecoder:
    """Decodes a body that comes in chunks; holds about a line at most.

    ``b"".join(feed(chunk) ...) + finish()`` equals ``decode_transfer`` of the whole
    for intact input.  ``problem`` is final after ``finish``.
    """

    def __init__(self, encoding: str) -> None:
        self._stream: _Stream
        if encoding == "base64":
            self._stream = _Base64Stream()
        elif encoding == "quoted-printable":
            self._stream = _QuotedPrintableStream()
        elif encoding in _UUENCODE:
            self._stream = _UuStream()
        else:
            self._stream = _IdentityStream(problem=encoding not in _IDENTITY)

    @property
    def problem(self) -> bool:
        """True when something was wrong so far."""
        return self._stream.problem

    def feed(self, chunk: bytes) -> bytes:
        """Return the octets that can be decoded now."""
        return self._stream.feed(chunk)

    def finish(self) -> bytes:
        """Return the octets that were held back."""
        return self._stream.finish()


class _IdentityStream:
    def __init__(self, *, problem: bool) -> None:
        self.problem = problem

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> bytes:
        return b""


class _Base64Stream:
    def __init__(self) -> None:
        self.problem = False
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        if chunk.translate(None, _JUNK):
            self.problem = True
        clean = self._held + chunk.translate(None, _NOT_BASE64)
        if b"=" in clean:
            return self._padded(clean)
        whole = len(clean) - len(clean) % 4
        self._held = clean[whole:]
        return binascii.a2b_base64(clean[:whole])

    def _padded(self, clean: bytes) -> bytes:
        """Every run of padding ends a piece; what follows it starts a new one."""
        head, _, tail = clean.rpartition(b"=")
        out = b""
        for piece in head.split(b"="):
            data, bad = _quads(piece)
            out += data
            self.problem |= bad
        whole = len(tail) - len(tail) % 4
        self._held = tail[whole:]
        self.problem |= bool(tail)
        return out + binascii.a2b_base64(tail[:whole])

    def finish(self) -> bytes:
        data, bad = _quads(self._held)
        self.problem |= bad or bool(self._held)  # the padding is missing
        self._held = b""
        return data


class _QuotedPrintableStream:
    def __init__(self) -> None:
        self.problem = False
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        data = self._held + chunk
        cut = data.rfind(b"\n") + 1
        if len(data) - cut > _HELD_MAX:  # a line without end: cut between escapes
            cut = len(data) - 1
            while cut and len(data) - cut < _HELD_MAX and data[cut] in b"= \t\r":
                cut -= 1
            equals = data.rfind(b"=", max(0, cut - 2), cut)
            cut = equals if equals >= 0 else cut
        self._held = data[cut:]
        return self._decode(data[:cut])

    def _decode(self, data: bytes) -> bytes:
        decoded, bad = _quoted_printable(data)
        self.problem |= bad
        return decoded

    def finish(self) -> bytes:
        data, self._held = self._held, b""
        return self._decode(data)


class _UuStream:
    def __init__(self) -> None:
        self.problem = False
        self._held = b""
        self._state = "before"  # before the begin line, inside, after the end line

    def feed(self, chunk: bytes) -> bytes:
        data = self._held + chunk
        cut = data.rfind(b"\n") + 1
        if len(data) - cut > _HELD_MAX:
            cut = len(data)
        self._held = data[cut:]
        return b"".join(self._line(line) for line in _lines(data[:cut], 0))

    def _line(self, line: bytes) -> bytes:
        if self._state == "inside":
            if line.startswith(b"end"):
                self._state = "after"
                return b""
            data, bad = _uu_line(line)
            self.problem |= bad
            return data
        if self._state == "before" and _UU_BEGIN.match(line + b"\n"):
            self._state = "inside"
        return b""

    def finish(self) -> bytes:
        data, self._held = self._held, b""
        out = self._line(data) if data else b""
        self.problem |= self._state != "after"
        return out
