"""SAVEDATE (RFC 8514): when a message came into its mailbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.extension import Attribute, Extension, SearchKey
from protocols.imap.searchkeys import ROWS, by_row, parse_day
from protocols.imap.wire import dates
from storage.model import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocols.imap.extension import Finder, Page, Positions


def _save_date(page: Page) -> tuple[bytes, Sequence[object]]:
    times = [dates.format_date_time(row.save_date) for row in page.rows]
    return b"SAVEDATE %b", times


async def _supported(_: Finder, positions: Positions, __: object) -> Positions:
    return positions


_BEFORE = by_row(lambda row, day, _: row.save_date // dates.DAY < day, saved=True)
_ON = by_row(lambda row, day, _: row.save_date // dates.DAY == day, saved=True)
_SINCE = by_row(lambda row, day, _: row.save_date // dates.DAY >= day, saved=True)

EXTENSION = Extension(
    capabilities=("SAVEDATE",),
    attributes=(Attribute("SAVEDATE", _save_date, Column.BASIC, saved=True),),
    search_keys=(
        SearchKey("SAVEDBEFORE", _BEFORE, parse_day, ROWS),
        SearchKey("SAVEDON", _ON, parse_day, ROWS),
        SearchKey("SAVEDSINCE", _SINCE, parse_day, ROWS),
        SearchKey("SAVEDATESUPPORTED", _supported),
    ),
)
