"""Encoded words in header fields (RFC 2047), as tolerant as readers expect."""

from __future__ import annotations

import binascii
import re
import unicodedata

from mailserverd.mail.charsets import codec_of, decode_charset, guess

_WORD = re.compile(rb"=\?([^?\s]{1,72})\?([QqBb])\?([^?]*)\?=")
_SPACE = b" \t\r\n"
_NOT_BASE64 = bytes(
    set(range(256))
    - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
)
# Controls must not survive decoding (RFC 8621 section 4.1.2.2).
_LONGEST_RUN = 30
_ANY_RUN = 200  # shorter text is not looked at
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)])


def unfold(raw: bytes) -> bytes:
    """Remove line breaks (RFC 5322 section 2.2.3), lone ones too, and NUL."""
    if b"\n" in raw or b"\r" in raw:
        raw = raw.translate(None, b"\r\n")
    return raw.replace(b"\x00", b"")


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
    out: list[str] = []
    run = _Run(out)
    done = 0
    for match in _WORD.finditer(value):
        charset = match[1].partition(b"*")[0].decode("latin-1").lower()
        gap = value[done : match.start()]
        chained = run.open and not gap
        if not codec_of(charset) or not _stands_alone(value, match.span(), chained):
            continue
        if not (run.open and not gap.strip(_SPACE)):
            run.close()
            out.append(guess(gap))
        run.add(charset, _octets(match[2], match[3]))
        done = match.end()
    run.close()
    out.append(guess(value[done:]))
    return compose("".join(out))


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


class _Run:
    """Adjacent words; their octets are joined while the charset is the same,
    because senders split multi-byte characters between words.
    """

    def __init__(self, out: list[str]) -> None:
        self._out = out
        self._charset = ""
        self._octets: list[bytes] = []
        self.open = False

    def add(self, charset: str, octets: bytes) -> None:
        """Take the decoded octets of one word."""
        if charset != self._charset:
            self.close()
        self._charset = charset
        self._octets.append(octets)
        self.open = True

    def close(self) -> None:
        """Decode what was collected."""
        if self._octets:
            text, _ = decode_charset(b"".join(self._octets), self._charset)
            self._out.append(text.translate(_CONTROLS))
        self._octets = []
        self._charset = ""
        self.open = False


def _octets(encoding: bytes, text: bytes) -> bytes:
    if encoding in b"Qq":
        return binascii.a2b_qp(text, header=True)
    clean = text.translate(None, _NOT_BASE64)
    if len(clean) % 4 == 1:  # no octet can end there
        clean = clean[:-1]
    return binascii.a2b_base64(clean + b"=" * (-len(clean) % 4))
