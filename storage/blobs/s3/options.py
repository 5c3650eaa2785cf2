"""``s3://bucket/prefix?option=value&...`` and what it means.

=============  =====================================================================
endpoint       base URL of the service; Amazon's own when missing
region         as the service names it
credentials    file in the form of ``~/.aws/credentials``; else boto3's own places:
               AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ``~/.aws``, the instance
profile        the section of that file
window         longest wait of a message for others: ``150ms``
verify         ``1``: read every object back before it is acknowledged
compression    zstd level, 0 for none
cache          directory of the cache on disk; ``none`` for no such cache
cache_size     bound of that directory: ``1GiB``
memory         bound of the cache in memory: ``16MiB``
timeout        longest silence of the service that is waited out: ``10s``
=============  =====================================================================
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.urls import shown

if TYPE_CHECKING:
    from collections.abc import Callable

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-_]{1,61}[a-z0-9]$", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)$", re.IGNORECASE)
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0}
_OCTETS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Where the store is and how it works; times in seconds, sizes in octets.

    ``segment_size`` is how much one object holds before it is written without
    waiting, ``large`` the least blob that gets an object of its own, ``piece`` the
    most that one GET of a large blob asks for, ``parallel`` how many packed objects
    are being written at once.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    credentials: str = ""
    profile: str = ""
    window: float = 0.15
    verify: bool = False
    compression: int = 1
    cache: str = ""
    cache_size: int = 1 << 30
    memory: int = 16 << 20
    timeout: float = 10.0
    connect_timeout: float = 2.0
    segment_size: int = 8 << 20
    large: int = 4 << 20
    piece: int = 1 << 20
    parallel: int = 4

    @property
    def place(self) -> str:
        """Name bucket, prefix and service for people."""
        path = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        return f"{path} at {self.endpoint or 'Amazon S3'}"


def parse(url: str, scratch: str = "") -> Options:
    """Read a URL; INVALID says what is wrong with it.

    ``scratch`` is the directory for the cache when the URL names none.
    """
    try:
        options = check(url)
    except ValueError as e:
        raise MailError(Kind.INVALID, f"blobs: {e}") from e
    cache = options.cache or scratch
    return dataclasses.replace(options, cache="" if cache == "none" else cache)


def check(url: str) -> Options:
    """Read a URL; ValueError says what is wrong with it."""
    parts = urlsplit(url)
    if not _BUCKET.match(parts.netloc):
        raise ValueError("s3://BUCKET/PREFIX must name a bucket")
    given: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _READERS:
            known = ", ".join(_READERS)
            raise ValueError(f'no option "{name}" for s3: (there are: {known})')
        try:
            given[name] = _READERS[name](text)
        except ValueError as e:
            raise ValueError(f"{name}={shown(text)}: {e}") from e
    return Options(parts.netloc, parts.path.strip("/"), **given)


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    plain = parts.path in {"", "/"} and not parts.query and "@" not in parts.netloc
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise ValueError("must be a URL such as https://s3.example.net")
    return text.rstrip("/")


def _switch(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("must be 0 or 1")
    return text == "1"


def _level(text: str) -> int:
    if not text.isdecimal() or int(text) > 19:
        raise ValueError("must be a number from 0 to 19")
    return int(text)


def _measure(units: dict[str, Any], text: str, example: str) -> float:
    match = _NUMBER.match(text)
    if not match or match[2].lower() not in units:
        raise ValueError(f'must be such as "{example}"')
    return float(match[1]) * float(units[match[2].lower()])


def _seconds(text: str) -> float:
    value = _measure(_SECONDS, text, "150ms")
    if value > 60:
        raise ValueError("must not be more than 60s")
    return value


def _patience(text: str) -> float:
    value = _seconds(text)
    if value < 0.1:
        raise ValueError("must not be less than 100ms")
    return value


def _octets(text: str) -> int:
    return int(_measure(_OCTETS, text, "64MiB"))


_READERS: dict[str, Callable[[str], object]] = {
    "endpoint": _endpoint,
    "region": _text,
    "credentials": _text,
    "profile": _text,
    "window": _seconds,
    "verify": _switch,
    "compression": _level,
    "cache": _text,
    "cache_size": _octets,
    "memory": _octets,
    "timeout": _patience,
}
