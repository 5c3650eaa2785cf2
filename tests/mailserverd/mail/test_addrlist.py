"""Address lists, hostile ones included."""

from __future__ import annotations

import pytest

from mailserverd.mail.addrlist import MAX_ADDRESSES, Address, parse_addresses

END = Address(b"", b"", None, None)


def box(mailbox: bytes, host: bytes, name: bytes = b"", route: bytes = b"") -> Address:
    return Address(name, route, mailbox, host)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a@b", [box(b"a", b"b")]),
        (
            b" Joe Q. Public <joe@x.y>, c@d",
            [box(b"joe", b"x.y", b"Joe Q. Public"), box(b"c", b"d")],
        ),
        (b'"Public, Joe" <joe@x.y>', [box(b"joe", b"x.y", b"Public, Joe")]),
        (b'"a \\"b\\" c" <x@y>', [box(b"x", b"y", b'a "b" c')]),
        (b'"x y"@z', [box(b"x y", b"z")]),
        (b"<@a,@b:c@d>", [box(b"c", b"d", route=b"@a,@b")]),
        (b"a@[192.0.2.1]", [box(b"a", b"[192.0.2.1]")]),
        (b"a@b (Joe)", [box(b"a", b"b", b"Joe")]),
        (b"(c) Joe <a@b>", [box(b"a", b"b", b"Joe")]),
        (
            b"Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>",
            [box(b"pete", b"silly.test", b"Pete")],
        ),
        (
            b"g: a@b, c@d;",
            [Address(b"", b"", b"g", None), box(b"a", b"b"), box(b"c", b"d"), END],
        ),
        (
            b"undisclosed-recipients:;",
            [Address(b"", b"", b"undisclosed-recipients", None), END],
        ),
        (b"g: a@b", [Address(b"", b"", b"g", None), box(b"a", b"b"), END]),
        (b"John Doe j@d.org", [box(b"j", b"d.org", b"John Doe")]),
        (b"<a@b> <c@d>", [box(b"a", b"b"), box(b"c", b"d")]),
        (b"<a@b, c@d", [box(b"a", b"b"), box(b"c", b"d")]),
        (b"a@b@c", [box(b"a@b", b"c")]),
        (b"foo", [box(b"foo", b"")]),
        (b"Foo <>", [box(b"", b"", b"Foo")]),
        (b"<>, ,", []),
        (b"", []),
        (b"a\r\n @b", [box(b"a", b"b")]),
        (b"=?utf-8?q?x?= <a@b>", [box(b"a", b"b", b"=?utf-8?q?x?=")]),
        (b"a(", [box(b"a(", b"")]),
        (b'"', []),
    ],
)
def test_lists(raw: bytes, expected: list[Address]) -> None:
    assert parse_addresses(raw) == expected


def test_the_number_is_limited() -> None:
    assert len(parse_addresses(b"a@b," * (MAX_ADDRESSES + 5))) == MAX_ADDRESSES
    assert len(parse_addresses(b"a," * (MAX_ADDRESSES + 5))) == MAX_ADDRESSES


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece", [b"(", b"<", b'"', b"<@a,", b"a:", b"\\", b"[", b"()", b"@", b" "]
)
def test_hostile_repetition_is_linear(piece: bytes) -> None:
    parse_addresses(b"To " + piece * (1 << 20))
