r"""Flags of the wire and of storage: ``\Seen`` and keywords (RFC 9051 section 2.3.2).

Four system flags are a bit mask, ``\Deleted`` belongs to the membership, everything
else is a keyword in lower case.  JMAP's ``$seen`` is ``\Seen`` (RFC 8621, 4.1.1).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from protocols.imap.wire.errors import WireError
from storage.model import ANSWERED, DRAFT, FLAGGED, SEEN, SYSTEM_KEYWORDS, Flags

if TYPE_CHECKING:
    from collections.abc import Iterable

    from protocols.imap.wire.cursor import Cursor

SYSTEM = {
    "\\seen": SEEN,
    "\\answered": ANSWERED,
    "\\flagged": FLAGGED,
    "\\draft": DRAFT,
}
IGNORED = frozenset({"\\recent"})  # the server's own (RFC 3501 section 2.3.2)
MAX_KEYWORD = 255
MAX_KEYWORDS = 100
DEFINED = "\\Answered \\Flagged \\Deleted \\Seen \\Draft"


@dataclasses.dataclass(frozen=True, slots=True)
class FlagList:
    r"""What a client lists: ``\Deleted`` apart from the rest."""

    flags: Flags
    deleted: bool


def parse(names: Iterable[str]) -> FlagList:
    """Sort flags as they came; WireError for a system flag that does not exist."""
    system, deleted = 0, False
    keywords: set[str] = set()
    for given in names:
        name = given.lower()
        if name in SYSTEM:
            system |= SYSTEM[name]
        elif name == "\\deleted":
            deleted = True
        elif name in SYSTEM_KEYWORDS:
            system |= SYSTEM_KEYWORDS[name]
        elif not name.startswith("\\"):
            keywords.add(name)
        elif name not in IGNORED:
            raise WireError("no such system flag")
    _check(keywords)
    return FlagList(Flags(system, tuple(sorted(keywords))), deleted)


def _check(keywords: set[str]) -> None:
    if len(keywords) > MAX_KEYWORDS:
        raise MailError(Kind.LIMIT, "too many keywords")
    if any(len(keyword) > MAX_KEYWORD for keyword in keywords):
        raise MailError(Kind.LIMIT, "keyword too long")


def flag_list(args: Cursor) -> list[str]:
    """``flag-list``: in parentheses, perhaps empty."""
    return args.group(args.flag, empty=True)
