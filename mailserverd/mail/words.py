"""Encoded words in header fields (RFC 2047), as tolerant as readers expect."""

from __future__ import annotations

import binascii
import functools
import itertools
import operator
import re
import unicodedata
from typing import TYPE_CHECKING

from mailserverd.mail.charsets import codec_of, decode_charset, guess

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD = re.compile(rb"=\?([^?\s]{1,72})\?([QqBb])\?([^?]*)\?=")
_SPACE = b" \t\r\n"
_NOT_BASE64 = bytes(
    set(range(256))
    - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
)
# Controls must not survive decoding (RFC 8621 section 4.1.2.2).
_LONGEST_RUN = 30
_ANY_RUN = 200  # shorter text is not looked at
CONTROLS = dict.fromkeys([*range(32), *range(127, 160)])


def unfold(raw: bytes) -> bytes:
    """Remove line breaks (RFC 5322 section 2.2.3), lone ones too, and NUL."""
    return raw.translate(None, b"\r\n\x00")


def decode_words(value: bytes) -> str:
    """Decode an unfolded value: encoded words where RFC 2047 section 5 allows.

    Raw 8-bit text is taken as UTF-8, else as windows-1252.  Words of an unknown
    charset stay as they are; undecodable octets become U+FFFD.  Words that
    touch each other are decoded, since many senders forget the space; words
    that touch other text are not (RFC 8621 section 4.1.2.2).  The result is in
    Normalization Form C.
    """
    if b"=?" not in value:
        return compose(guess(value))
    pieces: list[tuple[str, bytes]] = []  # charset ("" for plain text) and octets
    charset, done = "", 0
    for match in _WORD.finditer(value):
        chained = charset != "" and match.start() == done
        label = _label(match[1])
        if not label or not _stands_alone(value, match.span(), chained):
            continue
        gap = value[done : match.start()]
        if gap and not (charset and gap.isspace()):
            pieces.append(("", gap))
        charset = label
        pieces.append((charset, _octets(match[2], match[3])))
        done = match.end()
    pieces.append(("", value[done:]))
    return compose("".join(_decoded(pieces)))


@functools.lru_cache(maxsize=64)
def _label(raw: bytes) -> str:
    """The charset of a word without its language (RFC 2231 section 5), if known."""
    name = raw.partition(b"*")[0].decode("latin-1").lower()
    return name if codec_of(name) else ""


def _decoded(pieces: list[tuple[str, bytes]]) -> Iterator[str]:
    """Decode runs of one charset as a whole: senders split characters between words."""
    for charset, run in itertools.groupby(pieces, operator.itemgetter(0)):
        octets = b"".join([octets for _, octets in run])
        if not charset:
            yield guess(octets)
            continue
        text, _ = decode_charset(octets, charset)
        yield text if text.isprintable() else text.translate(CONTROLS)


def _stands_alone(value: bytes, span: tuple[int, int], chained: bool) -> bool:
    start, end = span
    if start and not chained and value[start - 1] not in _SPACE:
        return False
    return end == len(value) or value[end] in _SPACE or value.startswith(b"=?", end)


def compose(text: str) -> str:
    """Return the text in Normalization Form C.

    Ordering n combining marks costs n * n: text with a run of more than 30, the
    limit of Unicode's Stream-Safe format, is returned as it is.
    """
    if text.isascii() or (len(text) > _ANY_RUN and _has_long_run(text)):
        return text
    return unicodedata.normalize("NFC", text)


def _has_long_run(text: str) -> bool:
    run = 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) else 0
        if run > _LONGEST_RUN:
            return True
    return False


def _octets(encoding: bytes, text: bytes) -> bytes:
    if encoding in b"Qq":
        return binascii.a2b_qp(text, header=True)
    clean = text.translate(None, _NOT_BASE64)
    if len(clean) % 4 == 1:  # no octet can end there
        clean = clean[:-1]
    return binascii.a2b_base64(clean + b"=" * (-len(clean) % 4))
