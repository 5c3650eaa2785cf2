"""Command lines, paths and parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail.dsn import encode_xtext
from protocols.smtp.wire.command import (
    CommandError,
    decode_xtext,
    parse_bdat,
    parse_command,
    parse_helo,
    parse_path_arguments,
)


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"noop", "NOOP", ""),
        (b"MAIL FROM:<a@b.example>  ", "MAIL", "FROM:<a@b.example>"),
        (b"EHLO  b\xc3\xbccher.example", "EHLO", "b\u00fccher.example"),
    ],
)
def test_commands(line: bytes, verb: str, argument: str) -> None:
    assert parse_command(line) == (verb, argument)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" NOOP",
        b"NO-OP",
        b"NOOP\t",
        b"N\x00OP",
        b"NOOP \x01",
        b"NOOP \xff",
        b"X" * 17,
    ],
)
def test_bad_commands(line: bytes) -> None:
    with pytest.raises(CommandError) as caught:
        parse_command(line)
    assert caught.value.code == 500


@pytest.mark.parametrize(
    ("argument", "address", "params"),
    [
        ("<>", "", {}),
        ("<a@B.Example>", "a@b.example", {}),
        (
            " <a@b.example> SIZE=5 smtputf8",
            "a@b.example",
            {"SIZE": "5", "SMTPUTF8": None},
        ),
        ('<"a b>"@c.example>', '"a b>"@c.example', {}),
        ('<"a"@c.example>', "a@c.example", {}),
        ("<@x.example,@y.example:a@b.example>", "a@b.example", {}),
        ("<a@[192.0.2.1]>", "a@[192.0.2.1]", {}),
        ("<" + "x" * 200 + "@b.example>", "x" * 200 + "@b.example", {}),
    ],
)
def test_reverse_paths(
    argument: str, address: str, params: dict[str, str | None]
) -> None:
    found = parse_path_arguments("FROM:" + argument, "FROM:")
    assert (found.address, found.params) == (address, params)


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("TO:<a@b.example>", 501),
        ("", 501),
        ("FROM:a@b.example", 553),
        ("FROM:<a@b.example", 553),
        ("FROM:<a>", 553),
        ("FROM:<a@b@c.example>", 553),
        ("FROM:<a b@c.example>", 553),
        ("FROM:<a..b@c.example>", 553),
        ("FROM:<a@-b.example>", 553),
        ("FROM:<a@b.example.>", 553),
        ("FROM:<a@[300.1.1.1]>", 553),
        ("FROM:<@x.example a@b.example>", 553),
        ("FROM:<a@b.example>x", 501),
        ("FROM:<a@b.example> A=", 501),
        ("FROM:<a@b.example> A=b=c", 501),
        ("FROM:<a@b.example> A A", 501),
        ("FROM:<a@b.example> " + " ".join(f"P{n}" for n in range(17)), 501),
        ("FROM:<" + "x" * 400 + "@b.example>", 553),
    ],
)
def test_bad_paths(argument: str, code: int) -> None:
    with pytest.raises(CommandError) as caught:
        parse_path_arguments(argument, "FROM:")
    assert caught.value.code == code
    assert caught.value.enhanced[0] == "5"


def test_postmaster_needs_no_domain() -> None:
    assert parse_path_arguments("TO:<PostMaster>", "TO:").address == "postmaster"
    with pytest.raises(CommandError):
        parse_path_arguments("FROM:<postmaster>", "FROM:")


def test_recipients_may_not_be_longer_than_the_rfc_says() -> None:
    with pytest.raises(CommandError):
        parse_path_arguments(f"TO:<{'x' * 65}@b.example>", "TO:")


@pytest.mark.parametrize("argument", ["", "a b", "a\u0085", "x" * 300])
def test_bad_helo(argument: str) -> None:
    with pytest.raises(CommandError):
        parse_helo(argument)


def test_bdat() -> None:
    assert parse_bdat("5") == (5, False)
    assert parse_bdat("0 last") == (0, True)
    for bad in ("", "-1", "5 LAST 6", "5  LAST", "\u0665", "1" * 21):
        with pytest.raises(CommandError):
            parse_bdat(bad)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_xtext_round_trip(text: str) -> None:
    assert decode_xtext(encode_xtext(text)) == text


@pytest.mark.parametrize("text", ["a+4", "+2b", "a=b", "a b", "\u00fc"])
def test_bad_xtext(text: str) -> None:
    with pytest.raises(ValueError, match="xtext"):
        decode_xtext(text)
