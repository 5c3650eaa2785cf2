"""Sequence sets, mailbox names, dates and strings: round trips and edges."""

from __future__ import annotations

import calendar
import email.utils
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.imap.wire import dates, encode, sequence, utf7
from protocols.imap.wire.cursor import Cursor, decode_mailbox
from protocols.imap.wire.errors import WireError

NUMBERS = st.integers(1, sequence.MAX_NUMBER)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)


@given(st.lists(NUMBERS, max_size=50, unique=True).map(sorted))
def test_a_set_of_numbers_survives(numbers: list[int]) -> None:
    if not numbers:
        assert sequence.encode(numbers) == b""
        return
    parsed = sequence.parse(sequence.encode(numbers))
    assert parsed.resolve(5) == list(sequence.compress(numbers))
    assert sum(b - a + 1 for a, b in parsed.resolve(5)) == len(numbers)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=8))
def test_normalise_is_a_union(ranges: list[tuple[int, int]]) -> None:
    wanted = {n for r in ranges for n in range(min(r), max(r) + 1)}
    merged = sequence.normalise(ranges)
    assert {n for low, high in merged for n in range(low, high + 1)} == wanted
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(merged))


@pytest.mark.parametrize(
    ("text", "largest", "expected"),
    [
        (b"1:*", 5, [(1, 5)]),
        (b"*", 5, [(5, 5)]),
        (b"9:*", 5, [(5, 9)]),
        (b"*:2,7", 5, [(2, 5), (7, 7)]),
        (b"*", 0, []),
        (b"1:4294967295", 5, [(1, 4294967295)]),
        (b"3,1:2", 9, [(1, 3)]),
    ],
)
def test_resolve(text: bytes, largest: int, expected: list[tuple[int, int]]) -> None:
    assert sequence.parse(text).resolve(largest) == expected


@pytest.mark.parametrize(
    "text",
    [b"", b"0", b"1,", b":1", b"1:", b"01", b"4294967296", b"a", b"1:2:3"],
)
def test_no_sequence_set(text: bytes) -> None:
    with pytest.raises(WireError):
        sequence.parse(text)


def test_copyuid_pairs_keep_their_order() -> None:
    assert sequence.encode_pairs([1, 2, 3, 7], [11, 12, 20, 21]) == (
        b"1:2,3,7",
        b"11:12,20,21",
    )


@given(NAMES)
def test_modified_utf7_round_trip(name: str) -> None:
    wire = utf7.encode(name)
    assert wire.isascii()
    assert utf7.decode(wire) == name


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("~peter/mail/台北/日本語", b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"),
        ("Entwürfe", b"Entw&APw-rfe"),
        ("a&b", b"a&-b"),
        ("😀", b"&2D3eAA-"),
    ],
)
def test_modified_utf7_examples(name: str, wire: bytes) -> None:
    assert utf7.encode(name) == wire
    assert utf7.decode(wire) == name


@pytest.mark.parametrize(
    "wire", [b"&", b"a&b", b"&AAA-", b"&AGE-", b"&U,BTFw-&ZeVnLIqe", b"&2D0-", b"\xfc"]
)
def test_not_modified_utf7(wire: bytes) -> None:
    with pytest.raises(WireError):
        utf7.decode(wire)


@given(st.binary(max_size=40))
def test_any_mailbox_name_is_a_name_or_an_error(name: bytes) -> None:
    for utf8 in (False, True):
        try:
            decode_mailbox(name, utf8=utf8)
        except WireError:
            continue


@given(st.binary(max_size=200))
def test_any_utf7_is_a_name_or_an_error(name: bytes) -> None:
    try:
        assert utf7.encode(utf7.decode(name)) == name
    except WireError:
        return


def test_inbox_in_any_case() -> None:
    assert decode_mailbox(b"iNbOx", utf8=False) == "INBOX"
    assert decode_mailbox(b"inbox/a", utf8=False) == "INBOX/a"
    assert decode_mailbox(b"inboxes", utf8=False) == "inboxes"


@given(st.binary(max_size=60))
def test_any_string_survives(value: bytes) -> None:
    for wire in (encode.string(value), encode.literal(value)):
        if wire.startswith(b"{"):
            assert wire == b"{%d}\r\n%b" % (len(value), value)
        else:
            assert Cursor([wire]).string() == value
            assert b"\r" not in wire


@given(NAMES)
def test_any_mailbox_survives(path: str) -> None:
    for utf8 in (False, True):
        wire = encode.mailbox(path, utf8=utf8)
        if wire.startswith(b'"'):
            read = Cursor([wire]).mailbox(utf8=utf8)
            assert read == decode_mailbox(path.encode(), utf8=True)


@given(st.integers(0, 4102444800))
def test_internal_dates(seconds: int) -> None:
    wire = dates.format_date_time(seconds)
    assert Cursor([wire]).date_time() == seconds
    expected = time.strftime("%d-%b-%Y %H:%M:%S +0000", time.gmtime(seconds))
    assert wire.decode().strip('"').replace(" ", "0", 1).lstrip("0") in (
        expected.lstrip("0"),
        expected.replace(" ", "0", 1).lstrip("0"),
    )


def test_a_zone_is_subtracted() -> None:
    wire = b'" 1-Feb-1994 21:52:25 -0800"'
    expected = email.utils.mktime_tz(
        email.utils.parsedate_tz("1 Feb 1994 21:52:25 -0800")  # type: ignore[arg-type]
    )
    assert Cursor([wire]).date_time() == expected


def test_dates_are_days() -> None:
    days = calendar.timegm((2024, 2, 29, 0, 0, 0)) // 86400
    for text in (b"29-Feb-2024", b'"29-FEB-2024"'):
        assert Cursor([text]).date() == days


@pytest.mark.parametrize(
    "text", [b"30-Feb-2024", b"1-Foo-2024", b"2024-01-01", b"1-Feb-24", b""]
)
def test_no_date(text: bytes) -> None:
    with pytest.raises(WireError):
        Cursor([text]).date()


@pytest.mark.parametrize(
    "text",
    [
        b'"1-Feb-1994 21:52:25 -0800"',
        b'" 1-Feb-1994 24:52:25 -0800"',
        b'" 1-Feb-1994 21:52:25 -9900"',
        b'" 1-Feb-1994"',
        b"x",
    ],
)
def test_no_date_time(text: bytes) -> None:
    with pytest.raises(WireError):
        Cursor([text]).date_time()
