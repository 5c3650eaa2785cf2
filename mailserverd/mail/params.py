"""Content-Type and Content-Disposition with parameters (RFC 2045, 2183, 2231)."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

from mailserverd.mail.charsets import codec_of, decode_charset, guess
from mailserverd.mail.words import CONTROLS, decode_words, unfold

if TYPE_CHECKING:
    from collections.abc import Iterator

Params = tuple[tuple[str, str], ...]

_TYPE = re.compile(rb"\s*+([^\s/;\"(),=]++)\s*+(?:/\s*+([^\s;\"(),=/]*+))?")
_TOKEN = re.compile(rb"\s*+([^\s;\"(),=]++)")
_PARAM = re.compile(
    rb"([^\s=;\"]++)[ \t]*+=[ \t]*+"
    rb'(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)(?:"|\\?$)|([^;]*+))',
    re.DOTALL,
)
_SEGMENT = re.compile(rb"(.+?)(?:\*(\d{1,4}))?(\*)?$", re.DOTALL)
_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_COMMENT = re.compile(rb"(?:^|(?<=\s))\(.*", re.DOTALL)
_FREE_TEXT = frozenset({b"name", b"filename"})  # unquoted brackets belong to them
_CACHED = 200  # octets; longer values are hardly ever seen again
_MAX_PARAMS = 200


class ContentType(NamedTuple):
    """A parsed Content-Type; ``boundary`` in the octets that delimiters have."""

    type: str
    subtype: str
    params: Params
    boundary: bytes


class Disposition(NamedTuple):
    """A parsed Content-Disposition; ``value`` "" when unreadable."""

    value: str
    params: Params


TEXT_PLAIN = ContentType("text", "plain", (("charset", "us-ascii"),), b"")


def parse_content_type(raw: bytes) -> ContentType:
    """Parse a Content-Type value; unreadable ones are text/plain (RFC 2045 5.2)."""
    return _cached_type(raw) if len(raw) <= _CACHED else _content_type(raw)


def _content_type(raw: bytes) -> ContentType:
    value = unfold(raw)
    match = _TYPE.match(value)
    if match is None:
        return TEXT_PLAIN
    main, sub = guess(match[1]).lower(), guess(match[2] or b"").lower()
    if not sub:
        if main != "text":  # the bare "text" of RFC 1049 days
            return TEXT_PLAIN._replace(params=parse_params(value, match.end()))
        sub = "plain"
    params = parse_params(value, match.end())
    boundary = _boundary(value, match.end()) if main == "multipart" else b""
    return ContentType(main, sub, params, boundary)


_cached_type = functools.lru_cache(maxsize=1024)(_content_type)


def parse_disposition(raw: bytes) -> Disposition:
    """Parse a Content-Disposition value (RFC 2183)."""
    return _cached_disposition(raw) if len(raw) <= _CACHED else _disposition(raw)


def _disposition(raw: bytes) -> Disposition:
    value = unfold(raw)
    match = _TOKEN.match(value)
    if match is None:
        return Disposition("", parse_params(value, 0))
    return Disposition(guess(match[1]).lower(), parse_params(value, match.end()))


_cached_disposition = functools.lru_cache(maxsize=1024)(_disposition)


def _raw_params(value: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    for count, match in enumerate(_PARAM.finditer(value, start)):
        if count >= _MAX_PARAMS:
            return
        name, quoted, plain = match.groups()
        name = name.lower()
        if quoted is not None:
            yield name, _PAIR.sub(rb"\1", quoted) if b"\\" in quoted else quoted
            continue
        if b"(" in plain and name not in _FREE_TEXT:
            plain = _COMMENT.sub(b"", plain)
        yield name, plain.strip()


def _boundary(value: bytes, start: int) -> bytes:
    pieces: dict[bytes, bytes] = {}
    for name, text in _raw_params(value, start):
        pieces.setdefault(name, text)
    if b"boundary" in pieces:
        return pieces[b"boundary"].rstrip(b" \t")
    if b"boundary*" in pieces:
        return unquote_to_bytes(pieces[b"boundary*"].rpartition(b"'")[2])
    joined = b""
    for number in range(_MAX_PARAMS):
        piece = pieces.get(b"boundary*%d" % number)
        if piece is None:
            break
        joined += piece
    return joined.rstrip(b" \t")


def parse_params(value: bytes, start: int) -> Params:
    """Parse ``; name=value`` pairs from ``start``; the first of a name wins.

    Continuations and charsets are decoded (RFC 2231), and so are encoded words,
    which many senders use here although RFC 2047 section 5 forbids it.
    """
    if b"=" not in value:
        return ()
    plain: dict[bytes, bytes] = {}
    extended: dict[bytes, dict[int, tuple[bytes, bool]]] = {}
    for name, text in _raw_params(value, start):
        if b"*" not in name:
            plain.setdefault(name, text)
            continue
        match = _SEGMENT.match(name)
        if match is not None:
            base, number, star = match.groups()
            plain.setdefault(base, b"")
            segments = extended.setdefault(base, {})
            segments.setdefault(int(number or 0), (text, bool(star)))
    return tuple(
        (guess(name), _extended(extended[name]) if name in extended else _plain(text))
        for name, text in plain.items()
    )


def _plain(text: bytes) -> str:
    if b"=?" in text:
        return decode_words(text)
    return guess(text)


def _extended(segments: dict[int, tuple[bytes, bool]]) -> str:
    charset = ""
    octets: list[bytes] = []
    for expected, (number, (text, encoded)) in enumerate(sorted(segments.items())):
        if number != expected:
            break
        if number == 0 and encoded and text.count(b"'") >= 2:
            label, _, rest = text.split(b"'", 2)
            charset = guess(label)
            octets.append(unquote_to_bytes(rest))
            continue
        octets.append(unquote_to_bytes(text) if encoded else text)
    whole = b"".join(octets)
    if not codec_of(charset) or not charset:
        return _plain(whole)
    value, _ = decode_charset(whole, charset)
    return value if value.isprintable() else value.translate(CONTROLS)
