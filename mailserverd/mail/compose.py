"""Complete and clean submitted messages; take header fields out of messages.

RFC 6409 section 8: what a submission server may and should add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.mail.addrlist import parse_addresses
from mailserverd.mail.build import crlf, new_message_id
from mailserverd.mail.dates import format_date
from mailserverd.mail.encode import ComposeError
from mailserverd.mail.headers import email_of, header_end, iter_fields

if TYPE_CHECKING:
    import mmap
    import random
    from collections.abc import Callable

    from mailserverd.mail.headers import Field

MAX_HEADER = 1 << 20  # octets
MAX_AUTHORS = 16 << 10  # octets of From or Sender: no reader may give up before the end
_SECRET = frozenset({b"bcc", b"resent-bcc"})
_ONLY_ONCE = frozenset({b"from", b"sender"})  # two would name two senders
_GENERATED = (b"date", b"message-id")


def complete(
    raw: bytes, now: float, hostname: str, rng: random.Random | None = None
) -> bytes:
    """Return a submitted message, completed and cleaned for sending.

    Bare CR and LF become CRLF; Date and Message-ID are added when missing or empty;
    Bcc and Resent-Bcc are removed; all else stays as it is.  ComposeError (a
    ValueError) for NUL, a missing or repeated From, one that names nobody, a repeated
    Sender, or a header with lines that are no fields, which two programs would read
    differently.
    """
    if b"\x00" in raw:
        raise ComposeError("message contains NUL")
    raw = crlf(raw)
    end = header_end(raw)
    return complete_header(raw[:end], now, hostname, rng) + raw[end:]


def complete_header(
    block: bytes, now: float, hostname: str, rng: random.Random | None = None
) -> bytes:
    """Do as ``complete`` with a header block alone, the blank line included.

    Its line ends are CRLF, and it holds no NUL.
    """
    if len(block) > MAX_HEADER:
        raise ComposeError("header is too long")
    fields = list(iter_fields(block))
    kept = _checked(block, fields)
    lines = [block[field.start : field.end] for field in kept]
    if lines and not lines[-1].endswith(b"\r\n"):
        lines[-1] += b"\r\n"
    names = {field.name.lower() for field in kept}
    if b"date" not in names:
        lines.append(f"Date: {format_date(now)}\r\n".encode())
    if b"message-id" not in names:
        lines.append(f"Message-ID: <{new_message_id(now, hostname, rng)}>\r\n".encode())
    return b"".join([*lines, b"\r\n"])


def _checked(block: bytes, fields: list[Field]) -> list[Field]:
    """Return the fields to keep; the rest of the block must be the blank line."""
    if sum(field.end - field.start for field in fields) < len(block.rstrip(b"\r\n")):
        raise ComposeError("header has a line that is no field")
    names = [field.name.lower() for field in fields]
    if b"from" not in names:
        raise ComposeError("message has no From")
    for name in _ONLY_ONCE:
        if names.count(name) > 1:
            raise ComposeError(f"message has more than one {name.decode().title()}")
    for field, name in zip(fields, names, strict=True):
        if name in _ONLY_ONCE:
            _check_authors(field.value, name.decode().title())
    return [
        field
        for field, name in zip(fields, names, strict=True)
        if name not in _SECRET and not (name in _GENERATED and not field.value.strip())
    ]


def _check_authors(value: bytes, name: str) -> None:
    if len(value) > MAX_AUTHORS:
        raise ComposeError(f"{name} is too long")
    if all(address.host is None for address in parse_addresses(value)):
        raise ComposeError(f"{name} names no address")


def from_addresses(raw: bytes | mmap.mmap) -> list[str]:
    """Return every address that the header names as author or sender.

    All mailboxes of all From and Sender fields, groups included, in order; what is
    no address is returned too (``"undisclosed"``), so that no check passes over it.
    Line ends are read as ``complete`` will write them.
    """
    block = crlf(raw[:MAX_HEADER])
    block = block[: header_end(block)]
    return [
        email_of(address)
        for field in iter_fields(block)
        if field.name.lower() in _ONLY_ONCE
        for address in parse_addresses(field.value)
        if address.host is not None
    ]


def strip_headers(raw: bytes, unwanted: Callable[[str, bytes], bool]) -> bytes:
    """Return the message without the fields for which ``unwanted`` is true.

    It is called with the lower-case name and the raw value of every field of the
    message's own header; nothing else is touched.
    """
    end = header_end(raw)
    block = raw[:end]
    pieces, start = [], 0
    for field in iter_fields(block):
        if unwanted(field.name.decode("latin-1").lower(), field.value):
            pieces.append(block[start : field.start])
            start = field.end
    if not start:
        return raw
    return b"".join([*pieces, raw[start:]])
