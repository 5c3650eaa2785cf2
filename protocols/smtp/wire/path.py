"""Paths: what stands between < and > in MAIL and RCPT (RFC 5321 section 4.1.2).

Strict on purpose: an address that two programs may read differently is refused, not
guessed at.  The mailbox itself is read by ``mail.addresses``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mailserverd.mail.addresses import AddressError, parse

_PATH = re.compile(r'<((?:[^\x00-\x20<>"\x7f]|"(?:[^"\\]|\\.)*+")*+)>')


class PathError(ValueError):
    """Not a path; the text may be shown to the peer."""


class Path(NamedTuple):
    """``address`` is canonical, "" for ``<>``, "postmaster" for ``<Postmaster>``.

    ``ascii`` tells whether it was written without SMTPUTF8; ``end`` where it ended.
    """

    address: str
    ascii: bool
    end: int


def parse_path(text: str, start: int, *, foreign: bool) -> Path:
    """Read a path at ``start``; PathError.

    ``foreign`` allows addresses longer than the RFC does (reverse-paths).
    """
    match = _PATH.match(text, start)
    if match is None:
        raise PathError("an address stands between < and >")
    inside, end = match[1], match.end()
    if not inside:
        return Path("", ascii=True, end=end)
    if inside.lower() == "postmaster" and not foreign:
        return Path("postmaster", ascii=True, end=end)
    try:
        address = parse(inside, smtputf8=True, foreign=foreign)
    except AddressError as error:
        raise PathError(str(error)) from None
    return Path(address, inside.isascii(), end)
