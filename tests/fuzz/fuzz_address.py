"""Addresses: of the envelope strictly, of header fields tolerantly."""

from __future__ import annotations

from mailserverd.mail import addresses
from mailserverd.mail.addrlist import parse_addresses
from mailserverd.mail.headers import as_addresses, as_grouped_addresses
from mailserverd.mail.imap_wire import render_addresses, render_envelope
from tests.lib import imap_syntax

SEEDS = [
    b"joe@example.org",
    b'"joe doe"@example.org',
    b"@relay.example,@other.example:joe@example.org",
    b"joe@[192.0.2.1]",
    b"joe@[IPv6:2001:db8::1]",
    b"\xc3\xbcser@b\xc3\xbccher.example",
    b"Joe <joe@example.org>, Friends: a@b, =?utf-8?q?x?= <c@d>;, (c) e@f (g)",
    b'"a \\" b" <"x y"@z>, <@a,@b:c@d>, unclosed <e@f, ((((',
]


def fuzz_one(data: bytes) -> None:
    """Envelope addresses are refused or canonical; lists always give valid IMAP."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        canonical = addresses.parse(text, smtputf8=True)
    except addresses.AddressError:
        pass
    else:
        assert addresses.parse(canonical, smtputf8=True) == canonical
        assert len(canonical.encode()) <= addresses.MAX_ADDRESS
        assert canonical.isprintable() or not canonical.isascii()
        key = addresses.normalise(canonical)
        assert addresses.normalise(key) == key
        local, domain = addresses.split(canonical)
        assert f"{local}@{domain}" == canonical
        assert domain.isascii()
    listed = parse_addresses(data)
    wire = render_addresses(listed)
    imap_syntax.envelope(render_envelope({}, {b"from": wire}))
    for one in as_addresses(data):
        str(one).encode()
    as_grouped_addresses(data)
