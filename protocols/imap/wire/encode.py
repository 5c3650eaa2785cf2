"""Response data to bytes (RFC 9051 section 9, RFC 3501 section 9)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from protocols.imap.wire import utf7

if TYPE_CHECKING:
    from collections.abc import Iterable

_ATOM = re.compile(rb"[!#$&'+,\-./0-9:;<=>?@A-Z^_`a-z|}~]+")
_QUOTED_ASCII = re.compile(rb"[\x01-\x09\x0b\x0c\x0e-\x7f]{0,1024}")
_QUOTED_UTF8 = re.compile(rb"[\x01-\x09\x0b\x0c\x0e-\x7f\x80-\xff]{0,1024}")
_SPECIAL = re.compile(rb'(["\\])')
SYSTEM_FLAGS = ((1, "\\Seen"), (2, "\\Answered"), (4, "\\Flagged"), (8, "\\Draft"))
DELETED = (16, "\\Deleted")


def quoted(value: bytes) -> bytes:
    """Return a quoted string; the caller knows that no CR, LF or NUL is in it."""
    if b'"' in value or b"\\" in value:
        value = _SPECIAL.sub(rb"\\\1", value)
    return b'"' + value + b'"'


def literal(value: bytes) -> bytes:
    """Return a literal."""
    return b"{%d}\r\n%b" % (len(value), value)


def string(value: bytes) -> bytes:
    """Return a quoted string where that is possible and short, else a literal."""
    return quoted(value) if _QUOTED_ASCII.fullmatch(value) else literal(value)


def astring(value: bytes) -> bytes:
    """Return an atom where possible, else a string."""
    if _ATOM.fullmatch(value) and value.upper() != b"NIL":
        return value
    return string(value)


def mailbox(path: str, *, utf8: bool) -> bytes:
    """Return a mailbox name: UTF-8 after ENABLE IMAP4rev2, else modified UTF-7.

    Always quoted: some clients do not take an atom with ``/`` in it.
    """
    if utf8:
        value = path.encode("utf-8", "replace")
        return quoted(value) if _QUOTED_UTF8.fullmatch(value) else literal(value)
    return string(utf7.encode(path))


def flags(bits: int, keywords: Iterable[str]) -> str:
    """Return a flag list with its parentheses."""
    names = [name for bit, name in (*SYSTEM_FLAGS, DELETED) if bits & bit]
    names += keywords
    return f"({' '.join(names)})"


def text(value: str) -> bytes:
    """Return human-readable text made safe: printable ASCII only, never empty."""
    safe = "".join(c if " " <= c <= "~" else "?" for c in value).strip()
    return safe.encode("ascii") or b"-"
