"""Authentication-Results: what we write is parsed back, what others forge is seen."""

from __future__ import annotations

import re
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from auth.mail.results import MethodResult, bears, build, forged, without_forged

ID = "mx.example.org"

# The grammar of RFC 8601 section 2.2, of a field that is unfolded.
CFWS = r"(?:[ \t]|\((?:[^()\\]|\\.)*\))"
QUOTED = r'"(?:[^"\\]|\\.)*"'
TOKEN = r"[^\s()<>@,;:\\\"/\[\]?=]+"
VALUE = rf"(?:{TOKEN}|{QUOTED}|[^\s()<>,;:\\\"\[\]]*@[^\s()<>@,;:\\\"/\[\]?=]+)"
PROPERTY = rf"[a-z]+\.[a-z0-9-]+={VALUE}"
ENTRY = rf"{CFWS}*[a-z0-9-]+=[a-z]+(?:{CFWS}+reason={VALUE})?(?:{CFWS}+{PROPERTY})*"
FIELD = re.compile(
    rf"Authentication-Results: {VALUE}(?:;{CFWS}*none|(?:;{ENTRY}{CFWS}*)+)\r\n",
    re.DOTALL,
)


def parse(field: bytes) -> str:
    """Check folding and grammar; return the field on one line."""
    assert field.endswith(b"\r\n")
    text = field.decode()
    lines = text.split("\r\n")[:-1]
    assert all(line.startswith("\t") for line in lines[1:])
    assert not re.search(r"[\r\n]", "".join(lines))
    unfolded = "".join(lines) + "\r\n"
    assert FIELD.fullmatch(unfolded.replace("\t", " ")), unfolded
    return unfolded.replace("\t", " ").strip()


def test_the_usual_field() -> None:
    field = build(
        ID,
        [
            MethodResult(
                "spf", "pass", properties=(("smtp.mailfrom", "a@example.com"),)
            ),
            MethodResult(
                "dkim",
                "fail",
                reason="body hash did not verify",
                properties=(("header.d", "example.com"), ("header.b", "Ab/+cd==")),
            ),
            MethodResult("dmarc", "none", comment="a (nested) \\ thing"),
        ],
    )
    assert field.decode() == (
        "Authentication-Results: mx.example.org;\r\n"
        "\tspf=pass smtp.mailfrom=a@example.com;\r\n"
        '\tdkim=fail reason="body hash did not verify" header.d=example.com\r\n'
        '\t header.b="Ab/+cd==";\r\n'
        "\tdmarc=none (a \\(nested\\) \\\\ thing)\r\n"
    )
    parse(field)


def test_no_results_and_empty_properties() -> None:
    assert build(ID, []) == b"Authentication-Results: mx.example.org;\r\n\tnone\r\n"
    field = build(ID, [MethodResult("dkim", "none", properties=(("header.d", ""),))])
    assert parse(field).endswith("dkim=none")


hostile = st.text(
    st.one_of(st.characters(), st.sampled_from('\r\n\t "\\()<>@,;:=/.\x00\x7f\x85')),
    max_size=60,
)


@hypothesis.given(hostile, hostile, hostile)
def test_a_strangers_text_stays_in_its_place(
    reason: str, comment: str, value: str
) -> None:
    result = MethodResult("spf", "fail", reason, comment, (("smtp.helo", value),))
    text = parse(build(ID, [result, MethodResult("dkim", "none")]))
    assert text.endswith(" dkim=none")
    assert text.startswith(f"Authentication-Results: {ID}; spf=fail")


def test_long_values_are_cut() -> None:
    field = build(
        ID,
        [MethodResult("x", "fail", "r" * 9999, "c" * 9999, (("a.b", "v" * 9999),))],
    )
    assert max(map(len, field.split(b"\r\n"))) < 400


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example.org; spf=pass",
        b" MX.Example.ORG; spf=pass",
        b"mx.example.org",
        b" mx.example.org 1; none",
        b" mx.example.org/1; none",
        b" mx.example.org.; none",
        b' "mx.example.org"; none',
        b' "mx\\.example.org"; none',
        b" (hello) mx.example.org; none",
        b" (a (nested \\) comment)) (two)\r\n\t mx.example.org; none",
        b"\r\n\tmx.example.org\r\n\t; none",
        b" mx.example.org(x); none",
        b" mx.example.org, other; none",
        b" mx.example.org\x00; none",
        b" mx.\xc2\xadexample.org; none",
        b' "mx.example.org; none',
        b" (unclosed mx.example.org; none",
        b" (" * 5000 + b" mx.example.org",
        b" " + b"x" * 70_000 + b"mx.example.org",
        b" ; mx.example.org; none",
        b" i=1; mx.example.org; none",
        b" mx .example.org; none",
        b" mx. example .org; none",
        b" mx(x).example.org; none",
        b' "mx".example.org; none',
        b" @mx.example.org; none",
        b" =?utf-8?q?mx.example.org?=; none",
        b" \xc2\xa0mx.example.org; none",
        b" \x0bmx.example.org; none",
    ],
)
def test_ours_however_disguised(value: bytes) -> None:
    assert bears(value, ID)


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example.net; spf=pass",
        b" example.org; spf=pass (mx.example.org)",
        b" amx.example.org; none",
        b" mx.example.org.evil.net; none",
        b" mx-example.org; none",
        b' "other" ; x=mx.example.org',
        b" (mx.example.org) mx.example.net; none",
        b"",
        b" ;",
    ],
)
def test_others(value: bytes) -> None:
    assert not bears(value, ID)


def test_utf8_name() -> None:
    assert bears(" bücher.example; none".encode(), "xn--bcher-kva.example")
    assert bears(b" xn--bcher-kva.example; none", "bücher.example")


def test_forged_fields_are_removed() -> None:
    ours = b"Authentication-Results: mx.example.org;\r\n\tspf=pass\r\n"
    odd = b"authentication-RESULTS \t: (x)\r\n mx.example.org; none\r\n"
    other = b"Authentication-Results: mx.example.net; none\r\n"
    rest = b"From: a@example.org\r\n\r\n"
    body = b"Authentication-Results: mx.example.org; none\r\n"
    message = ours + b"A: b\r\n" + odd + other + ours + rest + body
    assert without_forged(message, ID) == b"A: b\r\n" + other + rest + body
    clean = other + rest + body
    assert without_forged(clean, ID) is clean
    assert forged(ours[:-2], ID) == [(0, len(ours) - 2)]
    assert without_forged(ours + b"\r\n", ID) == b"\r\n"


@pytest.mark.parametrize(
    "value",
    [
        b"(" * 60_000,
        b"()" * 30_000,
        b'"' + b"\\" * 60_000,
        b" " * 60_000,
        b"\\(" * 30_000,
    ],
)
def test_hostile_fields_take_linear_time(value: bytes) -> None:
    before = time.process_time()
    bears(value, ID)
    assert time.process_time() - before < 0.3


def test_no_end_of_foreign_fields() -> None:
    other = b"Authentication-Results: mx.example.net; none\r\n"
    rest = b"From: a@example.org\r\n\r\n"
    assert without_forged(other * 100 + rest, ID) == other * 100 + rest
    assert without_forged(other * 20_000 + rest, ID) == other * 100 + rest


def test_a_forged_field_behind_a_long_header() -> None:
    ours = b"Authentication-Results: mx.example.org;\r\n\tspf=pass\r\n"
    long = b"X: y\r\n" * 150_000
    assert without_forged(long + ours + b"\r\n" + ours, ID) == long + b"\r\n" + ours
    assert without_forged(long + ours, ID) == long
    assert without_forged(b"\r\n" + ours, ID) == b"\r\n" + ours


@hypothesis.given(st.binary(max_size=100))
def test_any_bytes(value: bytes) -> None:
    bears(value, ID)
    without_forged(b"Authentication-Results:" + value, ID)
