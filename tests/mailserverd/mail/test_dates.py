"""Dates as they are written, and as we write them."""

from __future__ import annotations

import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail.dates import format_date, parse_date


@pytest.mark.parametrize(
    ("raw", "jmap"),
    [
        (b" Fri, 21 Nov 1997 09:55:06 -0600", "1997-11-21T09:55:06-06:00"),
        (b"21 Nov 97 09:55 GMT", "1997-11-21T09:55:00Z"),
        (
            b"Thu,\r\n 13\r\n Feb\r\n 1969\r\n 23:32\r\n -0330 (NT)",
            "1969-02-13T23:32:00-03:30",
        ),
        (
            b"Fri, 21 Nov 1997 09(comment):   55  :  06 -0600",
            "1997-11-21T09:55:06-06:00",
        ),
        (b"Mon Jan  2 15:04:05 2006", "2006-01-02T15:04:05Z"),
        (b"Mon Jan  2 15:04:05 EST 2006", "2006-01-02T15:04:05-05:00"),
        (b"2020-01-02T03:04:05+01:00", "2020-01-02T03:04:05+01:00"),
        (b"Tue, 1 July 2003 10:52:37 +02:00", "2003-07-01T10:52:37+02:00"),
        (b"Tue, 1 Jul 2003 10.52.37 +0200", "2003-07-01T10:52:37+02:00"),
        (b"1 Jul 103 10:52:37 +0200", "2003-07-01T10:52:37+02:00"),
        (b"Sat, 31 Dec 2016 23:59:60 +0000", "2016-12-31T23:59:59Z"),
        (b"Wed, 01 Jan 0001 00:00:00 +2359", "0001-01-01T00:00:00+23:59"),
        (b"Fri, 31 Dec 9999 23:59:59 -2359", "9999-12-31T23:59:59-23:59"),
        (b"21 Nov 1997 09:55:06 +9999", "1997-11-21T09:55:06Z"),
        (b"21 Nov 1997 09:55:06 A", "1997-11-21T09:55:06Z"),
    ],
)
def test_dates_that_can_be_read(raw: bytes, jmap: str) -> None:
    date = parse_date(raw)
    assert date is not None
    assert date.jmap() == jmap


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"soon",
        b"32 Jan 2020 00:00:00",
        b"1 Foo 2020 00:00",
        b"1 Jan 2020 25:00",
        b"1 Jan 0000 0:0",
    ],
)
def test_dates_that_cannot(raw: bytes) -> None:
    assert parse_date(raw) is None


@given(st.integers(0, 4_000_000_000), st.integers(-1439, 1439))
def test_round_trip(epoch: int, offset: int) -> None:
    text = format_date(epoch, offset)
    assert parse_date(text.encode()) == (epoch, offset)
    assert email.utils.parsedate_to_datetime(text).timestamp() == epoch


@given(st.binary(max_size=60))
def test_never_raises(raw: bytes) -> None:
    if date := parse_date(raw):
        date.jmap()
