"""Replies: three digits, an enhanced status code, one or more lines of text.

RFC 5321 section 4.2 (syntax), RFC 2034 (enhanced codes on every line).
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_TEXT = 400  # octets of text on one line: the line stays below 512 (RFC 5321)
MAX_LINE = 2048  # octets of a peer's reply line; the RFC says 512, some say more
MAX_LINES = 128
_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\r\n]*))?", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s|$)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


class ReplyError(ValueError):
    """The peer's bytes are no SMTP reply."""


class Reply(NamedTuple):
    """One reply; ``enhanced`` is ``"5.1.1"`` or "" (greeting, EHLO, 3xx)."""

    code: int
    enhanced: str
    text: str  # lines separated by "\n", without the enhanced code

    @property
    def positive(self) -> bool:
        """True for 2xx and 3xx."""
        return self.code < 400

    @property
    def line(self) -> str:
        """The reply on one line, for logs and delivery status notifications."""
        return " ".join(
            filter(None, (str(self.code), self.enhanced, *self.text.split("\n")))
        )

    def encode(self, *, utf8: bool = False) -> bytes:
        """Return the wire form; text outside ASCII only where ``utf8`` was agreed."""
        text = self.text
        if text.isascii() and text.isprintable() and len(text) <= MAX_TEXT:
            enhanced = f" {self.enhanced}" if self.enhanced else ""
            return f"{self.code}{enhanced} {text}\r\n".encode()
        return self._encode_slowly(utf8=utf8)

    def _encode_slowly(self, *, utf8: bool) -> bytes:
        head = f" {self.enhanced} " if self.enhanced else " "
        lines = self.text.split("\n")
        charset = "utf-8" if utf8 else "ascii"
        last = len(lines) - 1
        return b"".join(
            f"{self.code}{' ' if i == last else '-'}{head[1:]}".encode()
            + _UNPRINTABLE.sub("?", line).encode(charset, "replace")[:MAX_TEXT]
            + b"\r\n"
            for i, line in enumerate(lines)
        )


class ReplyReader:
    """Bytes in, replies out: the receiving end of an SMTP client.

    Lines may end with a bare LF: some servers send them so.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[str] = []
        self._code = 0

    @property
    def pending(self) -> bool:
        """True when octets of an unfinished reply were received."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that ``data`` completes; ReplyError ends the dialog."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > MAX_LINE:
            raise ReplyError("reply line too long")
        return [reply for line in lines if (reply := self._line(line)) is not None]

    def _line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line.removesuffix(b"\r"))
        if match is None or len(line) > MAX_LINE:
            raise ReplyError(f"not an SMTP reply: {line[:80]!r}")
        code = int(match[1])
        if self._lines and code != self._code:
            raise ReplyError("a reply of several codes")
        if len(self._lines) >= MAX_LINES:
            raise ReplyError("a reply of too many lines")
        self._code = code
        text = (match[3] or b"").replace(b"\0", b"?")  # no database holds it as text
        self._lines.append(text.decode("utf-8", "replace"))
        if match[2] == b"-":
            return None
        lines, self._lines = self._lines, []
        return _reply(code, lines)


def _reply(code: int, lines: list[str]) -> Reply:
    """Take the enhanced code off, when there is one of the same class."""
    match = _ENHANCED.match(lines[0])
    if match is None or match[1][0] != str(code)[0]:
        return Reply(code, "", "\n".join(lines))
    enhanced = match[1]
    text = "\n".join(line.removeprefix(enhanced).lstrip(" ") for line in lines)
    return Reply(code, enhanced, text)
