"""Envelope addresses, strictly (RFC 5321 section 4.1.2, SMTPUTF8 of RFC 6531).

Header fields are read with more patience: see ``addrlist``.  A canonical address
has its domain as lower-case A-labels (or an address literal in its shortest
form) and quotes only where the local part needs them.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata

from mailserverd.core.names import a_labels

MAX_LOCAL, MAX_DOMAIN, MAX_ADDRESS = 64, 255, 254  # octets, RFC 5321 section 4.5.3.1
MAX_FOREIGN = 320  # octets: the return addresses of list and bounce software are longer

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LDH = r"[A-Za-z0-9](?:[A-Za-z0-9_-]*+(?<=[A-Za-z0-9]))?"
_COMMON = re.compile(
    rf"({_ATEXT}++(?:\.{_ATEXT}++)*+)@({_LDH}(?:\.{_LDH})*+\.[A-Za-z]++)"
)
_DOT_STRING = re.compile(
    rf"(?:{_ATEXT}|[^\x00-\x7f])++(?:\.(?:{_ATEXT}|[^\x00-\x7f])++)*+"
)
_QUOTED = re.compile(r'"((?:[^\x00-\x1f\x7f"\\]|\\[\x20-\x7e])*+)"')
_ROUTE = re.compile(r"@[^\x00-\x20<>@,:\"\\]+(?:,@[^\x00-\x20<>@,:\"\\]+)*+:")
# Underscores are no host name syntax, but domains with them send mail.
_LABEL = re.compile(rf"_?{_LDH}")
_PAIR = re.compile(r"\\(.)")


class AddressError(ValueError):
    """Not an address; the text says why, and may be shown to the peer."""


def parse(text: str, *, smtputf8: bool = False, foreign: bool = False) -> str:
    """Return the canonical form of a Mailbox; AddressError when it is none.

    A source route (``@relay:joe@example.org``) is dropped, as RFC 5321 appendix C
    asks.  ``%`` and ``!`` have no meaning: they are letters of a local part.
    Characters beyond ASCII need ``smtputf8``.  An address that is ``foreign``, which
    we only answer to, may exceed the RFC's lengths.
    """
    common = _COMMON.fullmatch(text)
    if common is None:
        return _parse_unusual(text, smtputf8, foreign)
    local, domain = common.groups()
    return _checked(local, _domain(domain), foreign)


def _parse_unusual(text: str, smtputf8: bool, foreign: bool) -> str:
    if not text.isascii() and not smtputf8:
        raise AddressError("address has characters beyond ASCII without SMTPUTF8")
    if len(text) > 2 * MAX_FOREIGN:  # room for a route
        raise AddressError("address is too long")
    route = _ROUTE.match(text)
    if route is not None:
        text = text[route.end() :]
    local, at, domain = _cut(text)
    if not at:
        raise AddressError("address has no domain")
    return _checked(_local(local), _domain(domain), foreign)


def _cut(text: str) -> tuple[str, str, str]:
    """Split at the @ that ends the local part."""
    quoted = _QUOTED.match(text)
    if quoted is None:
        return text.partition("@")
    end = quoted.end()
    return text[:end], text[end : end + 1], text[end + 1 :]


def _checked(local: str, domain: str, foreign: bool) -> str:
    if not foreign and len(local.encode()) > MAX_LOCAL:
        raise AddressError("local part is longer than 64 octets")
    address = f"{local}@{domain}"
    limit = MAX_FOREIGN if foreign else MAX_ADDRESS
    if len(address.encode()) > limit:
        raise AddressError(f"address is longer than {limit} octets")
    return address


def _local(text: str) -> str:
    if not text.isascii():
        if not all(map(_printable, text)):
            raise AddressError("local part has control characters")
        # First, since U+037E, the Greek question mark, becomes a semicolon.
        text = unicodedata.normalize("NFC", text)
    if _DOT_STRING.fullmatch(text):
        return text
    quoted = _QUOTED.fullmatch(text)
    if quoted is None:
        raise AddressError("local part is malformed")
    return quote_local(_PAIR.sub(r"\1", quoted[1]))


def _printable(char: str) -> bool:
    return unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"}


def quote_local(content: str) -> str:
    """Return a local part's content with quotes if it needs them."""
    if _DOT_STRING.fullmatch(content):
        return content
    return '"' + content.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unquote_local(local: str) -> str:
    """Return the content of a local part, without the quotes."""
    if local.startswith('"') and local.endswith('"') and len(local) > 1:
        return _PAIR.sub(r"\1", local[1:-1])
    return local


def _domain(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return _literal(text[1:-1])
    domain = a_labels(text)
    if domain is None or text.endswith("."):
        raise AddressError("domain is malformed")
    labels = domain.split(".")
    if not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise AddressError("domain is malformed")
    return domain


def _literal(text: str) -> str:
    """RFC 5321 section 4.1.3; only its two kinds, and no zone of one host."""
    try:
        if "%" in text:
            raise AddressError("address literal has a zone")
        if text[:5].lower() == "ipv6:":
            return f"[IPv6:{ipaddress.IPv6Address(text[5:]).compressed}]"
        return f"[{ipaddress.IPv4Address(text)}]"
    except ipaddress.AddressValueError:
        raise AddressError("address literal is malformed") from None


def split(address: str) -> tuple[str, str]:
    """Split a canonical address into local part and domain ("" when it has none)."""
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (domain, "")


def normalise(address: str) -> str:
    """Return the form under which mailboxes are looked up; AddressError if malformed.

    Canonical, without quotes, the local part case-folded: nobody has two
    mailboxes that differ in case.
    """
    local, domain = split(parse(address, smtputf8=True))
    folded = unicodedata.normalize("NFC", unquote_local(local).casefold())
    return f"{quote_local(folded)}@{domain}"
