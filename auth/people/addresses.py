"""Addresses as the directory compares them: case-folded local part, A-label domain."""

from __future__ import annotations

import unicodedata

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.names import a_labels

MAX_ADDRESS = 1000  # characters looked at; quoting and UTF-8 make them many
MAX_LOCAL = 64  # octets, RFC 5321 section 4.5.3.1.1
SPECIALS = frozenset('"(),:;<>@[\\] ')


def canonical(address: str) -> tuple[str, str] | None:
    """Return (local part, domain) in the form that is compared; None if not one.

    The domain is "" for a bare local part (``postmaster``).  A quoted local part
    means its content (RFC 5321 section 4.1.2), letter case does not matter.
    """
    if len(address) > MAX_ADDRESS:
        return None
    local, at, name = address.rpartition("@")
    if not at:
        local, name = address, ""
    if local[:1] == '"':
        local = _unquoted(local)
    local = _folded(local)
    if not 0 < _octets(local) <= MAX_LOCAL:
        return None
    if not at:
        return local, ""
    domain = a_labels(name)
    return None if domain is None else (local, domain)


def parse(address: str) -> tuple[str, str]:
    """Return ``canonical`` of an address with a domain; INVALID otherwise."""
    found = canonical(address)
    if found is None or not found[1]:
        raise MailError(Kind.INVALID, f"not an address: {address[:100]!a}")
    return found


def new_address(address: str) -> tuple[str, str]:
    """Return ``parse`` of an address to be made here: a dot-string, no quoting.

    INVALID for what other servers could not write to us (RFC 5321 section 4.1.2).
    """
    local, domain = parse(address)
    bad = any(c in SPECIALS or not c.isprintable() for c in local)
    if bad or local[0] == "." or local[-1] == "." or ".." in local:
        raise MailError(Kind.INVALID, f"not a local part to give out: {local!a}")
    return local, domain


def text(address: tuple[str, str]) -> str:
    """Return ``local@domain``."""
    return f"{address[0]}@{address[1]}"


def _octets(local: str) -> int:
    """Return the length in UTF-8; 0 when nobody has it (NUL, lone surrogates)."""
    try:
        return 0 if "\0" in local else len(local.encode())
    except UnicodeEncodeError:
        return 0


def _folded(local: str) -> str:
    if local.isascii():
        return local.lower()
    return unicodedata.normalize("NFC", local.casefold())


def _unquoted(local: str) -> str:
    if len(local) < 2 or local[-1] != '"':
        return ""
    characters = iter(local[1:-1])
    return "".join(next(characters, "") if c == "\\" else c for c in characters)
