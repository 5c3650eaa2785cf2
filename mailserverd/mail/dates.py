"""Dates of header fields: RFC 5322 with its obsolete forms, and what else is sent."""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

_MONTHS = {
    name: number
    for number, name in enumerate(
        b"jan feb mar apr may jun jul aug sep oct nov dec".split(), 1
    )
}
# Hours east of Greenwich (RFC 5322 section 4.3); military letters mean unknown.
_ZONES = {
    b"ut": 0,
    b"gmt": 0,
    b"utc": 0,
    b"z": 0,
    b"est": -5,
    b"edt": -4,
    b"cst": -6,
    b"cdt": -5,
    b"mst": -7,
    b"mdt": -6,
    b"pst": -8,
    b"pdt": -7,
    b"met": 1,
    b"mest": 2,
    b"cet": 1,
    b"cest": 2,
    b"bst": 1,
    b"jst": 9,
}
_RFC = re.compile(
    rb"\s*+(?:[A-Za-z]{3,9}+[,.\s]\s*+)?(\d{1,2})[\s.-]\s*+([A-Za-z]{3})[a-z]{0,6}"
    rb"[\s,.-]\s*+(\d{2,4}),?\s++(\d{1,2})[:.](\d{1,2})(?:[:.](\d{1,2}))?(?:\.\d{1,9})?"
    rb"\s*+(?:\(?(?:GMT|UTC)?([+-]\d{1,2}:?\d{2})|([A-Za-z]{1,5}))?"
)
_ASCTIME = re.compile(
    rb"\s*+(?:[A-Za-z]{3,9},?\s++)?([A-Za-z]{3})[a-z]{0,6}\s++(\d{1,2}),?\s++"
    rb"(?:(\d{4}),?\s++)?(\d{1,2}):(\d{2})(?::(\d{2}))?"
    rb"(?:\s++([+-]\d{4})|\s++([A-Za-z]{3,4}))?(?:\s++(\d{4}))?(?:\s++([+-]\d{4}))?"
)
_ISO = re.compile(
    rb"\s*+(\d{4})-(\d{2})-(\d{2})[T\s](\d{2}):(\d{2})(?::(\d{2}))?(?:\.\d{1,9})?"
    rb"\s*+(?:([+-]\d{2}:?\d{2})|(Z|z|UTC|GMT))?"
)
_COMMENT = re.compile(rb"\([^()]*\)")
_COLON = re.compile(rb"\s*+:\s*+")
_EPOCH = datetime.date(1970, 1, 1).toordinal()
_START = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - local times are computed
_DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTH_NAMES = tuple(n.decode().capitalize() for n in _MONTHS)
_MAX_DATE = 200  # octets looked at
_LAST_HOUR, _LAST_MINUTE, _LEAP_SECOND = 23, 59, 60


class Date(NamedTuple):
    """An instant and where it was written."""

    epoch: int  # seconds since 1970-01-01T00:00:00Z
    offset: int  # minutes east of Greenwich

    def jmap(self) -> str:
        """Return ``2014-10-30T14:12:00+08:00`` (Date of RFC 8620 section 1.4)."""
        # always representable: it is what was written
        local = _START + datetime.timedelta(seconds=self.epoch + self.offset * 60)
        if not self.offset:
            return f"{local.isoformat()}Z"
        sign, minutes = ("-", -self.offset) if self.offset < 0 else ("+", self.offset)
        return f"{local.isoformat()}{sign}{minutes // 60:02}:{minutes % 60:02}"


def parse_date(raw: bytes) -> Date | None:
    """Parse a date-time; None when nothing sensible can be read.

    Accepts RFC 5322 section 3.3 with the obsolete forms of section 4.3, missing
    zones and seconds, asctime and ISO 8601.  Two-digit years follow RFC 5322.
    """
    raw = raw[:_MAX_DATE]
    found = _RFC.match(raw)
    if found is None:
        return _parse_odd(raw)
    day, month, year, hour, minute, second, zone, name = found.groups()
    clock = (int(hour), int(minute), int(second or 0))
    return _date(
        (int(year), len(year)), _month(month), int(day), clock, _offset(zone, name)
    )


def _parse_odd(raw: bytes) -> Date | None:
    text = raw
    for _ in range(3):  # comments nest, but not deeply in a date
        text = _COMMENT.sub(b" ", text)
    text = text.translate(None, b"\r\n\x00").replace(b"_", b" ")
    text = _COLON.sub(b":", text)
    if text != raw and _RFC.match(text):
        return parse_date(text)
    if found := _ISO.match(text):
        year, month, day, hour, minute, second, zone, name = found.groups()
        clock = (int(hour), int(minute), int(second or 0))
        return _date((int(year), 4), int(month), int(day), clock, _offset(zone, name))
    if found := _ASCTIME.match(text):
        month, day, y1, hour, minute, second, zone, name, y2, late = found.groups()
        if y1 or y2:
            clock = (int(hour), int(minute), int(second or 0))
            where = _offset(zone or late, name)
            return _date((int(y1 or y2), 4), _month(month), int(day), clock, where)
    return None


def _month(name: bytes) -> int:
    return _MONTHS.get(name.lower(), 0)


def _offset(zone: bytes | None, name: bytes | None) -> int:
    if zone:
        digits = zone[1:].replace(b":", b"").rjust(4, b"0")
        hours, minutes = int(digits[:2]), int(digits[2:])
        if hours > _LAST_HOUR or minutes > _LAST_MINUTE:
            return 0
        return (hours * 60 + minutes) * (-1 if zone[0] == ord("-") else 1)
    return _ZONES.get((name or b"").lower(), 0) * 60


def _date(
    year: tuple[int, int], month: int, day: int, clock: tuple[int, int, int], zone: int
) -> Date | None:
    number, digits = year
    if digits == 2:
        number += 2000 if number < 50 else 1900
    elif digits == 3:
        number += 1900
    hour, minute, second = clock
    if hour > _LAST_HOUR or minute > _LAST_MINUTE or second > _LEAP_SECOND:
        return None
    try:
        days = datetime.date(number, month, day).toordinal() - _EPOCH
    except ValueError:
        return None
    seconds = days * 86400 + hour * 3600 + minute * 60 + min(second, 59) - zone * 60
    return Date(seconds, zone)


def format_date(epoch: float, offset: int = 0) -> str:
    """Return a date-time of RFC 5322 section 3.3: ``Fri, 21 Nov 1997 09:55:06 +0000``.

    ``epoch`` in seconds; ``offset`` in minutes east of Greenwich.
    """
    moment = _START + datetime.timedelta(seconds=int(epoch) + offset * 60)
    sign, minutes = ("-", -offset) if offset < 0 else ("+", offset)
    return (
        f"{_DAY_NAMES[moment.weekday()]}, {moment.day} {_MONTH_NAMES[moment.month - 1]}"
        f" {moment.year:04} {moment:%H:%M:%S} {sign}{minutes // 60:02}{minutes % 60:02}"
    )
