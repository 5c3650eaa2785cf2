"""Envelope addresses: strict, canonical."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailserverd.mail.addresses import (
    AddressError,
    normalise,
    parse,
    split,
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("joe@example.org", "joe@example.org"),
        ("Joe.Q+x@Example.ORG", "Joe.Q+x@example.org"),
        ("user%host@relay.example", "user%host@relay.example"),
        ("a!b@c.example", "a!b@c.example"),
        ('"joe"@example.org', "joe@example.org"),
        ('"joe doe"@example.org', '"joe doe"@example.org'),
        ('"a\\@\\"b"@example.org', '"a@\\"b"@example.org'),
        ('""@example.org', '""@example.org'),
        ("joe@localhost", "joe@localhost"),
        ("joe@xn--bcher-kva.example", "joe@xn--bcher-kva.example"),
        ("@a.example,@b.example:joe@c.example", "joe@c.example"),
        ("joe@[192.0.2.1]", "joe@[192.0.2.1]"),
        ("joe@[ipv6:2001:DB8:0::1]", "joe@[IPv6:2001:db8::1]"),
        ("joe@foo_bar.example", "joe@foo_bar.example"),
        ("_x@_y.example", "_x@_y.example"),
    ],
)
def test_addresses(text: str, canonical: str) -> None:
    assert parse(text) == canonical


def test_characters_beyond_ascii_need_smtputf8() -> None:
    for text in ("jürgen@example.org", "joe@bücher.example"):
        with pytest.raises(AddressError):
            parse(text)
    assert parse("jürgen@Bücher.example", smtputf8=True) == (
        "jürgen@xn--bcher-kva.example"
    )
    assert parse("u\u0308@x.example", smtputf8=True) == "ü@x.example"
    with pytest.raises(AddressError):
        parse("a\u0085b@x.example", smtputf8=True)
    with pytest.raises(AddressError):  # a semicolon, once it is normalised
        parse("\u037eb@x.example", smtputf8=True)
    assert parse('"\u037eb"@x.example', smtputf8=True) == '";b"@x.example'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "joe",
        "@example.org",
        "joe@",
        "joe@@example.org",
        "joe@a@b.example",
        ".joe@example.org",
        "joe.@example.org",
        "jo..e@example.org",
        "joe@.example",
        "joe@example.",
        "joe@exa mple.org",
        "jo e@example.org",
        "joe@-a.example",
        "joe@a-.example",
        "joe@192.0.2.1",
        "joe@[192.0.2.300]",
        "joe@[example]",
        "joe@[IPv6:x]",
        "joe@[IPv6:2001:db8::%1@]",
        "joe@[IPv6:fe80::1%eth0]",
        "joe\r\n@example.org",
        "joe@example.org\n",
        "joe\x00@example.org",
        '"joe@example.org',
        '"jo"e@example.org',
        '"a\nb"@example.org',
        "<joe@example.org>",
        "a,b@example.org",
        "@a.example:",
        "x" * 65 + "@example.org",
        "joe@" + "a" * 64 + ".example",
        "joe@" + ".".join(["a" * 60] * 5),
        "@" + "a." * 330 + "b:joe@example.org",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(AddressError):
        parse(text)


def test_length_limits() -> None:
    local = "x" * 64
    domain = ".".join(["a" * 61] * 3) + ".xyz"  # 189 octets
    assert len(parse(f"{local}@{domain}")) == 254
    with pytest.raises(AddressError, match="254"):
        parse(f"{local}@a{domain}")


def test_split() -> None:
    assert split("joe@x.example") == ("joe", "x.example")
    assert split('"a@b"@x.example') == ('"a@b"', "x.example")
    assert split("joe") == ("joe", "")


def test_normalise() -> None:
    assert normalise('"Joe"@EXAMPLE.org') == "joe@example.org"
    assert normalise("STRASSE@x.example") == normalise("straße@x.example")
    assert normalise("joe@BÜCHER.example") == "joe@xn--bcher-kva.example"


def test_foreign_addresses_may_be_longer() -> None:
    text = "bounce-" + "x" * 100 + "@lists.example"
    assert parse(text, foreign=True) == text
    with pytest.raises(AddressError):
        parse("x" * 400 + "@lists.example", foreign=True)


@given(st.text(max_size=30), st.text(max_size=30))
def test_canonical_is_stable(local: str, domain: str) -> None:
    try:
        canonical = parse(f"{local}@{domain}", smtputf8=True)
    except AddressError:
        return
    assert parse(canonical, smtputf8=True) == canonical
    assert normalise(normalise(canonical)) == normalise(canonical)
