"""Kinds of configuration values: each checks one value and says what would be right.

A kind is a callable ``parse(raw) -> value`` that raises ``ValueError`` with a text
that completes the sentence "KEY = RAW: ...".  ``show(value)`` is its inverse for the
example file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import re
import urllib.parse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTNAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*"
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    re.IGNORECASE,
)
DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$")
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE = re.compile(r"^(\d+)\s*([KMGT]i?B|B)?$", re.IGNORECASE)
SIZE_UNITS = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A named parser; ``expects`` is a phrase for documentation and errors."""

    expects: str
    parse: Callable[[Any], Any]


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("must be a string in quotes")  # noqa: TRY004 - one error kind
    return raw


def _boolean(raw: Any) -> bool:
    if not isinstance(raw, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 - one error kind
    return raw


def _hostname(raw: Any) -> str:
    name = _text(raw).rstrip(".")
    if not HOSTNAME.match(name):
        raise ValueError('must be a host name such as "mail.example.org"')
    return name.lower()


def _duration(raw: Any) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool) and raw >= 0:
        return float(raw)
    match = DURATION.match(raw) if isinstance(raw, str) else None
    if match is None:
        raise ValueError('must be seconds, or a text such as "30s", "5m", "4h", "5d"')
    return float(match[1]) * DURATION_UNITS[match[2]]


def _size(raw: Any) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
        return raw
    match = SIZE.match(raw) if isinstance(raw, str) else None
    if match is None:
        raise ValueError('must be octets, or a text such as "50 MB" or "64 MiB"')
    return int(match[1]) * SIZE_UNITS[(match[2] or "B").lower()]


def _address(raw: Any) -> str:
    value = _text(raw)
    if value.startswith("systemd:") and len(value) > len("systemd:"):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError('must be "address:port", "[v6]:port" or "systemd:NAME"')
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ValueError(f'"{host}" is not an IP address') from None
    return value


def _dns_server(raw: Any) -> str:
    value = _text(raw)
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(value.strip("[]"))
        return value
    with contextlib.suppress(ValueError):
        if not value.startswith("systemd:"):
            return _address(value)
    raise ValueError('must be "address", "address:port" or "[v6]:port"')


def _relay(raw: Any) -> str:
    value = _text(raw)
    host, colon, port = value.rpartition(":")
    if not colon:
        host, port = value, "25"
    good = _is_literal(host) if colon and host[:1] == "[" else _is_name(host)
    if value and not (good and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError('must be "host:port", "host", "[address]:port" or empty')
    return value


def _is_name(text: str) -> bool:
    return bool(HOSTNAME.match(text)) and not text.rpartition(".")[2].isdigit()


def _is_literal(text: str) -> bool:
    try:
        ipaddress.ip_address(text[1:-1])
    except ValueError:
        return False
    return text[-1] == "]"


text = Kind("a text", _text)
boolean = Kind("true or false", _boolean)
hostname = Kind("a host name", _hostname)
duration = Kind("a duration", _duration)
size = Kind("a size in octets", _size)
address = Kind("address:port or systemd:NAME", _address)
relay = Kind("host:port", _relay)
dns_server = Kind("address or address:port", _dns_server)


def integer(low: int, high: int) -> Kind:
    """A whole number between two bounds, both included."""

    def parse(raw: Any) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return raw

    return Kind(f"{low} to {high}", parse)


def choice(*values: str) -> Kind:
    """One of a few words."""

    def parse(raw: Any) -> str:
        if raw not in values:
            raise ValueError("must be one of " + ", ".join(values))
        return str(raw)

    return Kind(" | ".join(values), parse)


def url(*schemes: str) -> Kind:
    """A URL with one of the schemes that an engine exists for, or empty."""

    def parse(raw: Any) -> str:
        value = _text(raw)
        scheme, colon, _ = value.partition(":")
        if value and (not colon or scheme not in schemes):
            raise ValueError(
                "must be a URL beginning with " + " or ".join(f"{s}:" for s in schemes)
            )
        if not _has_address(value):
            raise ValueError(
                "must hold a host and a port from 1 to 65535; in a password "
                "@ : / ? # and % are written as %40 %3A %2F %3F %23 and %25"
            )
        return value

    return Kind(" or ".join(f"{s}:..." for s in schemes), parse)


def _has_address(value: str) -> bool:
    """Tell whether a URL's hosts and ports are such, where it names them."""
    try:
        parts = urllib.parse.urlsplit(value)
        hosts = parts.netloc.rpartition("@")[2].split(",")
        beyond = parts.path + parts.query.partition("=")[0] + parts.fragment
        split = bool(parts.netloc) and "@" in beyond  # within a password
        return not split and all(
            urllib.parse.urlsplit(f"//{h}").port != 0 for h in hosts
        )
    except ValueError:
        return False


def many(kind: Kind, *, least: int = 0) -> Kind:
    """A list of values of one kind."""

    def parse(raw: Any) -> tuple[Any, ...]:
        if not isinstance(raw, list):
            raise ValueError(f"must be a list of {kind.expects}")  # noqa: TRY004
        if len(raw) < least:
            raise ValueError(f"must name at least {least}")
        return tuple(kind.parse(item) for item in raw)

    return Kind(f"list of {kind.expects}", parse)
