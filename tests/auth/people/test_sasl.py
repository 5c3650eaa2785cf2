"""SASL PLAIN (RFC 4616) and LOGIN, octet by octet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.people import sasl
from auth.people.sasl import Challenge, Credentials, Done, SaslError


def plain() -> sasl.Exchange:
    """Start PLAIN."""
    exchange = sasl.start("plain")
    assert exchange is not None
    return exchange


def login() -> sasl.Exchange:
    """Start LOGIN."""
    exchange = sasl.start("Login")
    assert exchange is not None
    return exchange


def test_names_are_found_in_any_case_and_others_not() -> None:
    assert sasl.MECHANISMS == ("PLAIN", "LOGIN")
    assert sasl.start("GSSAPI") is None
    assert sasl.start("") is None


def test_plain_with_and_without_initial_response() -> None:
    assert plain().step(None) == Challenge(b"")
    done = plain().step(b"\0tim\0tanstaaftanstaaf")  # RFC 4616 section 4
    assert done == Done(Credentials("", "tim", b"tanstaaftanstaaf"))
    done = plain().step("Ursel\0Kurt\0xipj3plmq é".encode())
    assert done == Done(Credentials("Ursel", "Kurt", "xipj3plmq é".encode()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"tim\0pass",
        b"\0tim\0pa\0ss",
        b"\0\0pass",
        b"\0tim\0",
        b"\0t\xff\0pass",
        b"\0" + b"u" * 256 + b"\0pass",
        b"\0tim\r\n\0pass",
        b"\0tim\0" + b"p" * 5000,
    ],
)
def test_plain_refuses_what_the_grammar_does_not_allow(data: bytes) -> None:
    with pytest.raises(SaslError):
        plain().step(data)


def test_login_asks_twice_or_takes_the_user_at_once() -> None:
    exchange = login()
    assert exchange.step(None) == Challenge(b"Username:")
    assert exchange.step(b"tim") == Challenge(b"Password:")
    assert exchange.step(b"p w") == Done(Credentials("", "tim", b"p w"))
    exchange = login()
    assert exchange.step(b"tim") == Challenge(b"Password:")


@pytest.mark.parametrize("data", [b"", b"a\0b", b"\xff", b"u" * 300, b"x" * 5000])
def test_login_refuses_bad_user_names(data: bytes) -> None:
    with pytest.raises(SaslError):
        login().step(data)


def test_login_refuses_an_empty_password() -> None:
    exchange = login()
    exchange.step(b"tim")
    with pytest.raises(SaslError):
        exchange.step(b"")


def test_credentials_do_not_show_their_password() -> None:
    assert "secret" not in repr(Credentials("", "tim", b"secret"))


@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from(sasl.MECHANISMS))
def test_any_octets_raise_nothing_else(steps: list[bytes], name: str) -> None:
    exchange = sasl.start(name)
    assert exchange is not None
    try:
        for data in steps:
            exchange.step(data)
    except SaslError:
        pass
