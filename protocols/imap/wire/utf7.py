"""Mailbox names of IMAP4rev1: modified UTF-7 (RFC 3501 section 5.1.3)."""

from __future__ import annotations

import binascii
import re

from protocols.imap.wire.errors import WireError

_PLAIN = re.compile(r"[ -%'-~]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SHIFTED = re.compile(r"[^ -~]+")


def encode(name: str) -> bytes:
    """Return the name in modified UTF-7; ``&`` becomes ``&-``."""
    if _PLAIN.fullmatch(name):
        return name.encode("ascii")
    return _SHIFTED.sub(_shift, name.replace("&", "&-")).encode("ascii")


def _shift(match: re.Match[str]) -> str:
    octets = match[0].encode("utf-16-be", "surrogatepass")
    packed = binascii.b2a_base64(octets, newline=False).decode("ascii")
    return "&" + packed.rstrip("=").replace("/", ",") + "-"


def decode(name: bytes) -> str:
    """Return the name; WireError when it is not well-formed modified UTF-7."""
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        raise WireError("mailbox name is not in modified UTF-7") from None
    if "&" in text:
        first, *rest = text.split("&")
        text = first + "".join(map(_unshift, rest))
    if _CONTROL.search(text):
        raise WireError("control character in a mailbox name")
    return text


def _unshift(piece: str) -> str:
    packed, dash, plain = piece.partition("-")
    if not dash:
        raise WireError("mailbox name ends inside a shift")
    if not packed:
        return "&" + plain
    return _unpack(packed) + plain


def _unpack(packed: str) -> str:
    padded = packed.replace(",", "/") + "=" * (-len(packed) % 4)
    try:
        octets = binascii.a2b_base64(padded, strict_mode=True)
        text = octets.decode("utf-16-be")
    except (binascii.Error, UnicodeDecodeError):
        raise WireError("mailbox name is not in modified UTF-7") from None
    if encode(text) != f"&{packed}-".encode():
        # RFC 3501 section 5.1.3: no shift for what can stand for itself, and no
        # superfluous shifts, or one mailbox would have several names.
        raise WireError("mailbox name is not in canonical modified UTF-7")
    return text
