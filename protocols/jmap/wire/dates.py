"""Date and UTCDate (RFC 8620 section 1.4, RFC 3339)."""

from __future__ import annotations

import datetime
import re
from functools import lru_cache

_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?(Z|[+-]\d\d:\d\d)",
    re.ASCII,
)
_UTC = datetime.UTC
_FIRST = -62_135_596_800  # 0001-01-01T00:00:00Z
_LAST = 253_402_300_799  # 9999-12-31T23:59:59Z


@lru_cache(maxsize=4096)
def utc(seconds: int) -> str:
    """Render seconds since the epoch as ``2014-10-30T06:12:00Z``."""
    clamped = min(max(seconds, _FIRST), _LAST)
    moment = datetime.datetime.fromtimestamp(clamped, _UTC)
    return moment.isoformat()[:19] + "Z"


def parse(text: str) -> datetime.datetime | None:
    """Parse a Date with any offset; None when it is not one, or does not exist.

    ``T`` and ``Z`` are upper case.  A fraction is accepted, zero too (JavaScript's
    ``toISOString`` writes one), and dropped.
    """
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    try:
        zone = _zone(match[7])
        year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
        return datetime.datetime(
            year, month, day, hour, minute, min(second, 59), tzinfo=zone
        )
    except ValueError:
        return None


def _zone(text: str) -> datetime.timezone:
    if text == "Z":
        return _UTC
    minutes = int(text[1:3]) * 60 + int(text[4:6])
    if int(text[4:6]) > 59:
        raise ValueError(text)
    sign = -1 if text[0] == "-" else 1
    return datetime.timezone(datetime.timedelta(minutes=sign * minutes))


def parse_utc(text: str) -> int | None:
    """Parse a UTCDate (``Z`` only) into seconds since the epoch."""
    if not text.endswith("Z"):
        return None
    moment = parse(text)
    return None if moment is None else int(moment.timestamp())
