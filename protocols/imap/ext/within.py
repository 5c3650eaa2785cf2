"""WITHIN (RFC 5032): younger or older than a number of seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.extension import Extension, SearchKey
from protocols.imap.searchkeys import VALUES, by_value

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


def _seconds(args: Cursor, _: str) -> int:
    return args.nz_number()


_YOUNGER = by_value("received_at", lambda time, n, now: time >= now - n)
_OLDER = by_value("received_at", lambda time, n, now: time <= now - n)

EXTENSION = Extension(
    capabilities=("WITHIN",),
    search_keys=(
        SearchKey("YOUNGER", _YOUNGER, _seconds, VALUES),
        SearchKey("OLDER", _OLDER, _seconds, VALUES),
    ),
)
