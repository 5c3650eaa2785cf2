"""WITHIN (RFC 5032): younger or older than a number of seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.extension import Extension, SearchKey
from protocols.imap.searchkeys import ROWS, by_row

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


def _seconds(args: Cursor, _: str) -> int:
    return args.nz_number()


_YOUNGER = by_row(lambda row, seconds, now: row.received_at >= now - seconds)
_OLDER = by_row(lambda row, seconds, now: row.received_at <= now - seconds)

EXTENSION = Extension(
    capabilities=("WITHIN",),
    search_keys=(
        SearchKey("YOUNGER", _YOUNGER, _seconds, ROWS),
        SearchKey("OLDER", _OLDER, _seconds, ROWS),
    ),
)
