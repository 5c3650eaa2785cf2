"""SAVEDATE (RFC 8514): when a message came into its mailbox."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from protocols.imap.extension import Attribute, Extension, SearchKey
from protocols.imap.searchkeys import VALUES, by_day, parse_day
from protocols.imap.wire import dates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocols.imap.extension import Finder, Page, Positions


def _save_date(page: Page) -> tuple[bytes, Sequence[object]]:
    times = page.values["save_date"]
    return b"SAVEDATE %b", [dates.format_date_time(time) for time in times]


async def _supported(_: Finder, positions: Positions, __: object) -> Positions:
    return positions


EXTENSION = Extension(
    capabilities=("SAVEDATE",),
    attributes=(Attribute("SAVEDATE", _save_date, ("save_date",)),),
    search_keys=(
        SearchKey("SAVEDBEFORE", by_day("save_date", operator.lt), parse_day, VALUES),
        SearchKey("SAVEDON", by_day("save_date", operator.eq), parse_day, VALUES),
        SearchKey("SAVEDSINCE", by_day("save_date", operator.ge), parse_day, VALUES),
        SearchKey("SAVEDATESUPPORTED", _supported),
    ),
)
