"""Submitted messages: completed and cleaned."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail.compose import complete, from_addresses, strip_headers
from mailserverd.mail.encode import ComposeError


def done(raw: bytes) -> bytes:
    return complete(raw, 1e9, "mx.example", random.Random(1))


def test_a_complete_message_stays_as_it_is() -> None:
    raw = (
        b"from : a@b\r\nDATE: x\r\nMessage-Id:\r\n <1@x>\r\nX:  odd  \r\n\tfold\r\n"
        b"\r\nbody \xff\r\n.\r\n"
    )
    assert done(raw) == raw


def test_what_is_missing_is_added() -> None:
    assert done(b"From: a@b\n\nhi\rthere\n\r\n") == (
        b"From: a@b\r\nDate: Sun, 9 Sep 2001 01:46:40 +0000\r\n"
        b"Message-ID: <e8d4a51000.d8f191b7584a2265b1f5@mx.example>\r\n"
        b"\r\nhi\r\nthere\r\n\r\n"
    )
    assert b"\r\nDate: Sun" in done(b"From: a@b\r\nDate: \r\n\r\n")
    without_body = done(b"From: a@b")
    assert without_body.startswith(b"From: a@b\r\nDate:")
    assert without_body.endswith(b"\r\n\r\n")


def test_bcc_is_removed_wherever_it_stands() -> None:
    raw = (
        b"Bcc: x@y,\r\n z@w\r\nFrom: a@b\r\nBCC:q@r\r\nResent-Bcc: s@t\r\n\r\nBcc: body"
    )
    cleaned = done(raw)
    head, _, body = cleaned.partition(b"\r\n\r\n")
    assert b"bcc" not in head.lower()
    assert b"z@w" not in head
    assert body == b"Bcc: body"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"From: a@b\r\n\r\nx\x00", "NUL"),
        (b"To: a@b\r\n\r\nx", "no From"),
        (b"", "no From"),
        (b"\r\nFrom: a@b", "no From"),
        (b"From: a@b\r\nFROM: c@d\r\n\r\n", "more than one From"),
        (b"From: a@b\r\nSender: c@d\r\nSender: e@f\r\n\r\n", "more than one Sender"),
        (b"From: a@b\r\njunk\r\n\r\n", "no field"),
        (b"From x\r\nFrom: a@b\r\n\r\n", "no field"),
        (b"From: a@b\r\nbody without blank line", "no field"),
        (b"From: a@b\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n", "too long"),
        (b"From:\r\n\r\n", "From names no address"),
        (b"From: <>\r\n\r\n", "From names no address"),
        (b'From: "Boss <boss@b>":;\r\n\r\n', "From names no address"),
        (b"From: a@b\r\nSender: x:;\r\n\r\n", "Sender names no address"),
        (b"From: " + b"a@b," * 9999 + b"boss@b\r\n\r\n", "From is too long"),
    ],
)
def test_what_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(ComposeError, match=reason):
        done(raw)


@given(st.binary(max_size=200))
def test_line_ends_are_clean_whatever_came(body: bytes) -> None:
    raw = b"From: a@b\r\n\r\n" + body.replace(b"\x00", b"")
    rest = done(raw).replace(b"\r\n", b"")
    assert b"\r" not in rest
    assert b"\n" not in rest


def test_completing_twice_changes_nothing() -> None:
    once = done(b"From: a@b\nSubject: x\n\nbody\n")
    assert done(once) == once


def test_from_addresses_names_everybody() -> None:
    raw = (
        b'From: "ceo@bank.example" <me@mine.example>, g: x@y;, nonsense\r\n'
        b"From: <a@b> <c@d>\r\nSender: s@t (Comment)\r\nTo: not@me\r\n\r\nFrom: no@body"
    )
    assert from_addresses(raw) == [
        "me@mine.example",
        "x@y",
        "nonsense",
        "a@b",
        "c@d",
        "s@t",
    ]
    assert from_addresses(b"\r\n") == []


def test_a_from_behind_a_bare_cr_is_not_overlooked() -> None:
    raw = b"X: y\rFrom: boss@b\rSubject: z\r\n\r\n"
    assert from_addresses(raw) == ["boss@b"]
    assert from_addresses(b"From: a@b\r\n\r\rFrom: boss@b\r\n\r\n") == ["a@b"]


def test_strip_headers() -> None:
    raw = b"A: 1\r\nB: 2\r\n 3\r\na: 4\r\njunk\r\n\r\nA: body"
    assert strip_headers(raw, lambda name, _: name == "a") == (
        b"B: 2\r\n 3\r\njunk\r\n\r\nA: body"
    )
    assert strip_headers(raw, lambda _, value: b"3" in value) == (
        b"A: 1\r\na: 4\r\njunk\r\n\r\nA: body"
    )
    assert strip_headers(raw, lambda *_: False) is raw
