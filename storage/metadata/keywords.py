"""Keywords: what may be one, and how they are stored (RFC 8621 section 4.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from storage.model import SYSTEM_KEYWORDS, Flags

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_KEYWORDS = 128  # on one email
MAX_KEYWORD = 255  # octets of one
FORBIDDEN = frozenset('(){]%*"\\')  # RFC 8621 section 4.1.1


def split_keywords(words: Iterable[str]) -> tuple[int, frozenset[str]]:
    """Return (system bits, other keywords); INVALID for what no keyword may be."""
    system = 0
    others = set()
    for word in words:
        bit = SYSTEM_KEYWORDS.get(word)
        if bit:
            system |= bit
        else:
            others.add(_checked(word))
    return system, frozenset(others)


def _checked(word: str) -> str:
    printable = all("!" <= char <= "~" and char not in FORBIDDEN for char in word)
    if not word or len(word) > MAX_KEYWORD or not printable:
        raise MailError(Kind.INVALID, "not a keyword", properties=["keywords"])
    return word.lower()


def join_keywords(words: Iterable[str]) -> str:
    """Return keywords as they are stored: sorted, joined by spaces; LIMIT."""
    ordered = sorted(words)
    if len(ordered) > MAX_KEYWORDS:
        raise MailError(Kind.LIMIT, "too many keywords")
    return " ".join(ordered)


def normal_flags(flags: Flags) -> Flags:
    """Return flags as they are stored: system keywords as bits, the others checked.

    INVALID for what no keyword may be, LIMIT for too many.
    """
    bits, others = split_keywords(flags.keywords)
    return Flags(flags.system | bits, tuple(join_keywords(others).split()))
