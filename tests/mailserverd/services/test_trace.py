"""Trace fields: nothing a client says can forge their syntax."""

from __future__ import annotations

import pytest

from mailserverd.core.types import Peer
from mailserverd.mail.headers import iter_fields
from mailserverd.services import trace


def received(**peer: str) -> str:
    field = trace.received(
        Peer(**peer),  # type: ignore[arg-type] # only its texts
        hostname="mx.example.org",
        message_id="0123456789",
        now=1_800_000_000,
    )
    assert len(list(iter_fields(field + b"\r\n"))) == 1
    return field.decode()


@pytest.mark.parametrize(
    ("helo", "shown"),
    [
        ("mail.example.net", "mail.example.net"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("my_pc", "my_pc"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("x)by(mx.example.org", "unknown"),
        ("a;b", "unknown"),
        ('"q"', "unknown"),
        ("", "unknown"),
    ],
)
def test_helo(helo: str, shown: str) -> None:
    assert f"from {shown} ([192.0.2.9])" in received(helo=helo, address="192.0.2.9")


def test_addresses_and_protocols() -> None:
    field = received(
        helo="a.example",
        address="2001:db8::1",
        protocol="UTF8SMTPS",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
    )
    assert "([IPv6:2001:db8::1])" in field
    assert "with UTF8SMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)" in field
    assert "; Fri, 15 Jan 2027 08:00:00 +0000" in field
    assert "(local)" in received(helo="localhost")


def test_return_path_is_found_again() -> None:
    head = trace.return_path("a@b.example")
    assert trace.without_return_path(head + b"Subject: x\r\n") == len(head)
    assert trace.without_return_path(b"Subject: x\r\n") == 0


@pytest.mark.parametrize(
    ("raw", "end"),
    [
        (b"A: b\r\n\r\nbody", 8),
        (b"\r\nbody", 2),
        (b"no body\r\n", 9),
        (b"", 0),
        (b"A: " + b"b" * (2 << 20), 1 << 20),
    ],
)
def test_header_end(raw: bytes, end: int) -> None:
    assert trace.header_end(raw) == end


def test_all_authors_are_seen() -> None:
    raw = b"from : a@b\r\nX: y\r\nFROM:\r\n c@d,\r\n\t<e@f>\r\n\r\nFrom: g@h\r\n"
    found = trace.inspect(raw, "mx.example.org")
    assert found.authors == ("a@b", "c@d", "e@f")
    assert found.kept is None


def test_hops_are_counted_in_the_header_alone() -> None:
    raw = b"Received: a\r\nreceived: b\r\nX-Received: c\r\n\r\nReceived: d\r\n"
    assert trace.inspect(raw, "mx.example.org").received == 2
