"""Trace fields: what we put before a message, and what of it we do not believe.

RFC 5321 section 4.4 (Received, Return-Path), RFC 8601 section 5 (foreign
Authentication-Results in our name).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import TYPE_CHECKING

from auth.mail.results import forged, without_forged
from mailserverd.core.names import a_labels
from mailserverd.mail.addrlist import parse_addresses
from mailserverd.mail.dates import format_date
from mailserverd.mail.headers import email_of

if TYPE_CHECKING:
    import mmap

    from mailserverd.core.types import Peer

MAX_RECEIVED = 50  # more hops are a loop (RFC 5321 section 6.3)
MAX_HEADER = 1 << 20  # octets looked at: twice what any reader of ours believes
_FROM = re.compile(rb"^from[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)", re.I | re.M)
_HELO = re.compile(r"[A-Za-z0-9._-]+|\[[A-Za-z0-9.:]+\]")


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """The header block of an arriving message.

    ``end`` is where it ends in the message: at the body, or after MAX_HEADER octets.
    ``kept`` is the block without fields that are not to be believed, or None when
    there are none of them.
    """

    end: int
    received: int
    kept: bytes | None
    authors: tuple[str, ...]  # the addresses of all From fields


def inspect(raw: bytes | mmap.mmap, hostname: str) -> Header:
    """Look at the header block of a message with CRLF line ends."""
    end = header_end(raw)
    block = bytes(raw[:end])
    folded = block.lower()
    received = folded.count(b"\nreceived:") + folded.startswith(b"received:")
    kept = None
    if b"authentication-results" in folded and forged(block, hostname):
        kept = without_forged(block, hostname)
    return Header(end, received, kept, _authors(block))


def header_end(raw: bytes | mmap.mmap) -> int:
    """Return where the body starts, at most MAX_HEADER; without a body, the end."""
    if raw[:2] == b"\r\n":
        return 2
    found = raw.find(b"\r\n\r\n", 0, MAX_HEADER)
    return found + 4 if found >= 0 else min(len(raw), MAX_HEADER)


def _authors(block: bytes) -> tuple[str, ...]:
    found = (parse_addresses(match[1]) for match in _FROM.finditer(block))
    return tuple(email_of(a) for one in found for a in one if a.host is not None)


def return_path(reverse_path: str) -> bytes:
    """Return the field that final delivery adds; relaying drops it again."""
    return f"Return-Path: <{reverse_path}>\r\n".encode()


def without_return_path(head: bytes) -> int:
    """Return how many octets at the start of a message are our Return-Path."""
    if head[:12].lower() != b"return-path:":
        return 0
    return head.find(b"\r\n") + 2


def received(
    peer: Peer,
    *,
    hostname: str,
    message_id: str,
    now: float,
    authenticated: bool = False,
) -> bytes:
    """Return the Received field (RFC 5321 section 4.4).

    It names no recipient: one blob serves all of them.  Who submitted a message is
    not told by address: that is nobody's business but ours.
    """
    protocol = peer.protocol
    if authenticated:
        source = f"from {hostname} (authenticated submission)"
    else:
        source = f"from {_helo(peer)} ({_address(peer)})"
    tls = f" ({peer.tls})" if peer.tls else ""
    lines = (
        f"Received: {source}",
        f"by {hostname} (mailserverd) with {protocol}{tls}",
        f"id {message_id}; {_date(int(now))}",
    )
    return "\r\n\t".join(lines).encode() + b"\r\n"


@functools.lru_cache(maxsize=4)
def _date(now: int) -> str:
    return format_date(now)


def _helo(peer: Peer) -> str:
    """The name the client gave, when it is one; anything else could forge syntax."""
    if _HELO.fullmatch(peer.helo):
        return peer.helo
    return a_labels(peer.helo) or "unknown" if not peer.helo.isascii() else "unknown"


def _address(peer: Peer) -> str:
    if not peer.address:
        return "local"
    return f"[IPv6:{peer.address}]" if ":" in peer.address else f"[{peer.address}]"
