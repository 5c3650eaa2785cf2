"""Paths and mailboxes of the envelope (RFC 5321 section 4.1.2, RFC 6531 section 3.3).

Strict on purpose: an address that two programs may read differently is refused, not
guessed at.  Source routes are read and dropped (RFC 5321 appendix C).
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

MAX_LOCAL = 256  # octets; RFC 5321 says at least 64, bounce addresses need more
MAX_DOMAIN = 255
MAX_LABEL = 63
_UTF8 = "\u00a0-\U0010ffff"
_ATOM = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_UTF8}-]+"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED = re.compile(rf'"((?:[ !#-\[\]-~{_UTF8}]|\\[ -~])*)"')
_LABEL = rf"[A-Za-z0-9_{_UTF8}](?:[A-Za-z0-9_{_UTF8}-]*[A-Za-z0-9_{_UTF8}])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LITERAL = re.compile(r"\[([^\[\]\\\s]{1,64})\]")
_ROUTE = re.compile(rf"@{_DOMAIN.pattern}(?:,@{_DOMAIN.pattern})*:")


class PathError(ValueError):
    """Not a path of RFC 5321."""


class Mailbox(NamedTuple):
    """``local`` is quoted only where it must be; ``domain`` is lower case."""

    local: str
    domain: str  # A-labels or U-labels, or "[192.0.2.1]"; "" only for <Postmaster>

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local


def parse_path(text: str, start: int = 0) -> tuple[Mailbox | None, int]:
    """Read ``<...>`` at ``start``; return the mailbox and the position behind it.

    None is the null path ``<>``.  A local part without a domain is given back as
    such: only RCPT may mean something by it (``<Postmaster>``).  PathError.
    """
    if text[start : start + 1] != "<":
        raise PathError("an address stands between < and >")
    if text[start + 1 : start + 2] == ">":
        return None, start + 2
    position = start + 1
    if text[position : position + 1] == "@":
        route = _ROUTE.match(text, position)
        if route is None:
            raise PathError("malformed source route")
        position = route.end()
    mailbox, position = _parse_mailbox(text, position)
    if text[position : position + 1] != ">":
        raise PathError("malformed address")
    return mailbox, position + 1


def parse_mailbox(text: str) -> Mailbox:
    """Read ``local@domain`` without brackets; PathError."""
    mailbox, end = _parse_mailbox(text, 0)
    if end != len(text) or not mailbox.domain:
        raise PathError("malformed address")
    return mailbox


def _parse_mailbox(text: str, start: int) -> tuple[Mailbox, int]:
    local, position = _local_part(text, start)
    if text[position : position + 1] != "@":
        return Mailbox(local, ""), position
    domain, position = _domain(text, position + 1)
    return Mailbox(local, domain), position


def _local_part(text: str, start: int) -> tuple[str, int]:
    found = _DOT_STRING.match(text, start)
    if found is not None:
        local = found[0]
    else:
        found = _QUOTED.match(text, start)
        if found is None:
            raise PathError("malformed local part")
        content = re.sub(r"\\(.)", r"\1", found[1])
        # RFC 5321 section 4.1.2: quoted only where needed; both forms are equal.
        local = content if _DOT_STRING.fullmatch(content) else found[0]
    if len(local.encode()) > MAX_LOCAL:
        raise PathError("local part too long")
    return local, found.end()


def _domain(text: str, start: int) -> tuple[str, int]:
    found = _DOMAIN.match(text, start)
    if found is None:
        return _address_literal(text, start)
    domain = found[0].lower()
    if len(domain.encode()) > MAX_DOMAIN or any(
        len(label) > MAX_LABEL for label in domain.split(".")
    ):
        raise PathError("domain too long")
    return domain, found.end()


def _address_literal(text: str, start: int) -> tuple[str, int]:
    found = _LITERAL.match(text, start)
    if found is None:
        raise PathError("malformed domain")
    content = found[1]
    try:
        if content[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(content[5:])
        else:
            ipaddress.IPv4Address(content)
    except ValueError:
        raise PathError("malformed address literal") from None
    return f"[{content.lower()}]", found.end()
