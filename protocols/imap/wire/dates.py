"""Dates of the IMAP grammar (RFC 9051 section 9: ``date``, ``date-time``)."""

from __future__ import annotations

import calendar
import datetime
import functools
import re
import time

from protocols.imap.wire.errors import WireError

MONTHS = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)
_NUMBER = {name.upper().encode(): n for n, name in enumerate(MONTHS, 1)}
_DATE = re.compile(rb"([ 0-9]?[0-9])-([A-Za-z]{3})-([0-9]{4})")
_TIME = re.compile(rb" ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-])([0-9]{2})([0-9]{2})")
_EPOCH = datetime.date(1970, 1, 1).toordinal()
DAY = 86400
_MAX_ZONE = 24 * 60


def parse_date(text: bytes) -> int:
    """Parse ``1-Feb-1994`` to days since 1 January 1970."""
    match = _DATE.fullmatch(text)
    if match is None:
        raise WireError("invalid date")
    return _days(match)


def _days(match: re.Match[bytes]) -> int:
    day, month, year = match.groups()
    number = _NUMBER.get(month.upper())
    if number is None:
        raise WireError("invalid month")
    try:
        return datetime.date(int(year), number, int(day)).toordinal() - _EPOCH
    except ValueError:
        raise WireError("no such date") from None


def parse_date_time(text: bytes) -> int:
    """Parse ``" 1-Feb-1994 21:52:25 -0800"`` (unquoted) to epoch seconds."""
    date, clock = _DATE.match(text), _TIME.fullmatch(text, 11)
    if date is None or clock is None or date.end() != 11:
        raise WireError("invalid date-time")
    hour, minute, second, zone_hour, zone_minute = (
        int(n) for n in clock.group(1, 2, 3, 5, 6)
    )
    zone = zone_hour * 60 + zone_minute
    if hour > 23 or minute > 59 or second > 60 or zone > _MAX_ZONE:
        raise WireError("no such time")
    offset = zone * 60 if clock[4] == b"+" else -zone * 60
    return _days(date) * DAY + hour * 3600 + minute * 60 + second - offset


@functools.lru_cache(maxsize=4096)
def _day_text(day: int) -> bytes:
    date = time.gmtime(day * DAY)
    return b'"%2d-%b-%04d ' % (
        date.tm_mday,
        MONTHS[date.tm_mon - 1].encode(),
        date.tm_year,
    )


_MINUTES = tuple(b"%02d:%02d:" % divmod(minute, 60) for minute in range(24 * 60))
_SECONDS = tuple(b'%02d +0000"' % second for second in range(60))


def format_date_time(seconds: int) -> bytes:
    """Return ``"01-Feb-1994 05:52:25 +0000"`` with its quotes, in UTC."""
    day, rest = divmod(min(max(seconds, 0), _LAST), DAY)
    minute, second = divmod(rest, 60)
    return _day_text(day) + _MINUTES[minute] + _SECONDS[second]


_LAST = calendar.timegm((9999, 12, 31, 23, 59, 59))
