"""Readable text of a message: for the search index and the preview line."""

from __future__ import annotations

import functools
import html
import re
from typing import TYPE_CHECKING

from mailserverd.mail.charsets import decode_charset
from mailserverd.mail.transfer import decode_transfer, is_identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.mail.jmap_body import Bodies
    from mailserverd.mail.model import Part
    from mailserverd.mail.octets import Octets

MAX_TEXT = 1 << 20  # characters of search text
PREVIEW = 256  # characters (RFC 8621 section 4.1.4)
_PREVIEW_SOURCE = 8192  # characters looked at

# All patterns swallow an unclosed construct up to the end, as browsers do: no
# position is scanned twice.
_UNSEEN = re.compile(
    r"<(?:!--(?:[^-]++|-(?!->))*+(?:-->|$)"
    r"|([sSHhTtNn](?:cript|tyle|ead|emplate|oscript))\b[^>]*+(?:>|$)"
    r"(?:[^<]++|<(?!/\1))*+(?:</\1[^>]*+(?:>|$)|$))",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(/?[a-zA-Z][a-zA-Z0-9]*+|[!?/])[^>]*+(?:>|$)")
_BLOCKS = (
    "address article aside blockquote br center dd div dl dt figure footer form h1 h2 "
    "h3 h4 h5 h6 header hr li main nav ol option p pre section table tbody td th thead "
    "tr title ul"
)
_BREAKS = {
    form: "\n"
    for tag in _BLOCKS.split()
    for form in (tag, f"/{tag}", tag.upper(), f"/{tag.upper()}")
}
_ENTITY = re.compile(
    r"&(?:#[0-9]{1,7}+(?![0-9]);?|#[xX][0-9a-fA-F]{1,6}+(?![0-9a-fA-F]);?|[A-Za-z][A-Za-z0-9]{1,31};?)"
)
# Invisible: soft hyphen, zero-width space and joiners, word joiner, BOM, and the
# combining grapheme joiner with which newsletters pad their preview.
_INVISIBLE = dict.fromkeys([0, 0xAD, 0x34F, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])
_QUOTED = re.compile(r"(?m)^>.*$\n?")


@functools.lru_cache(maxsize=512)
def _entity(text: str) -> str:
    return html.unescape(text)


def html_to_text(source: str) -> str:
    """Return the visible text of HTML, a line per block; linear for any input."""
    text = _UNSEEN.sub(" ", source).replace("\r", " ").replace("\n", " ")
    pieces = _TAG.split(text)  # text and tag names in turn
    pieces[1::2] = [_BREAKS.get(tag, "") for tag in pieces[1::2]]
    text = "".join(pieces)
    if "&" in text:
        text = _ENTITY.sub(lambda match: _entity(match[0]), text)
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return "\n".join([line for line in lines if line])


class TextExtractor:
    """Decodes each text part once, within one budget for the whole message."""

    def __init__(self, octets: Octets, parts: Sequence[Part]) -> None:
        self._octets = octets
        self._parts = parts
        self._left = MAX_TEXT
        self._texts: dict[int, str] = {}

    def text(self, index: int) -> str:
        """Return the readable text of a text/* part, "" for any other."""
        known = self._texts.get(index)
        if known is None:
            known = self._texts[index] = self._extract(self._parts[index])
        return known

    def _extract(self, part: Part) -> str:
        if part.type != "text" or not self._left:
            return ""
        source = decode_text(self._octets, part, self._left)
        self._left -= len(source)
        if part.subtype == "html":
            source = html_to_text(source)
        return source.replace("\x00", "")

    def preview(self, bodies: Bodies) -> str:
        """Return up to 256 characters of the first body that says something."""
        for index in bodies.text:
            if found := self._preview(self.text(index)):
                return found
        return ""

    @staticmethod
    def _preview(text: str) -> str:
        if ">" in text[:_PREVIEW_SOURCE]:  # quoted lines say least
            unquoted = _QUOTED.sub("", text[:_PREVIEW_SOURCE])
            text = unquoted if unquoted.strip() else text
        for length in (2 * PREVIEW, _PREVIEW_SOURCE):
            start = text[:length]
            if not start.isascii():
                start = start.translate(_INVISIBLE)
            line = " ".join(start.split())
            if len(line) >= PREVIEW:
                break
        return line[:PREVIEW].rstrip()

    def search_text(self, bodies: Bodies, subjects: dict[int, str]) -> str:
        """Return the text of all text parts, attached and enclosed ones included.

        Of an HTML body that repeats a plain one, only lines with other words.
        Names of attachments are text too, and so are ``subjects``: of enclosed
        messages, by the index of their root.
        """
        first = [self.text(index) for index in bodies.text]
        known = set(bodies.text)
        rest: list[str] = []
        words: set[str] = set()
        for index, part in enumerate(self._parts):
            if index in subjects:
                rest.append(subjects[index])
            if part.type == "text" and index not in known:
                text = self.text(index)
                if index in bodies.html:
                    words = words or {word for body in first for word in body.split()}
                    text = _new_lines(text, words)
                rest.append(text)
            if part.filename:
                rest.append(part.filename)
        return "\n".join([text for text in (*first, *rest) if text])[:MAX_TEXT]


def _new_lines(text: str, words: set[str]) -> str:
    lines = text.split("\n")
    return "\n".join([line for line in lines if not words.issuperset(line.split())])


def decode_text(octets: Octets, part: Part, limit: int) -> str:
    """Return the decoded text of a part, at most ``limit`` characters, LF line ends."""
    start, end = part.body_start, part.body_end
    if end - start > limit:
        end = _cut(octets, part, limit)
    data, _ = decode_transfer(octets[start:end], part.encoding)
    text, _ = decode_charset(data, part.param("charset"))
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text[:limit]


def _cut(octets: Octets, part: Part, limit: int) -> int:
    """Where to stop reading a long part: after a line, so that no character breaks."""
    factor = 1 if is_identity(part.encoding) else 2  # base64 4/3, qp 1 to 3
    end = min(part.body_end, part.body_start + limit * factor)
    tail = max(part.body_start, end - 4096)
    line = octets[tail:end].rfind(b"\n")
    return tail + line + 1 if line >= 0 else end
