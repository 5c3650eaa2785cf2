"""What search engines share: words, queries, and the text of a message.

A word is a run of letters and digits after NFKC and case folding; everything else
separates, so that ``info@example.com`` is three words.  There is no stemming.
Scripts written without spaces (Han, Kana, Hangul, Thai, Lao, Khmer, Burmese) become
overlapping pairs, and the last character of a run stands alone too, so that every
single character can be found by prefix.
"""

from __future__ import annotations

import dataclasses
import re
import threading
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

import zstandard

if TYPE_CHECKING:
    from array import array

ANALYZER = 1  # raised when the words of a text change: indexes are then rebuilt
FIELDS = ("from", "to", "cc", "bcc", "subject", "body")
MAX_WORD = 64  # characters; longer words are cut, in texts and in queries alike
MAX_WORDS = 64  # in one query string
_MAX_TEXT = 8 << 20  # octets of one message's text, when unpacked

# Marks that belong to the letter before them, so that vowel signs do not cut words.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u0711\u0730-\u074a"
    "\u0900-\u0963\u0971-\u0dff\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ebc"
    "\u0ec8-\u0ece\u0f71-\u0f84\u102b-\u103e\u1056-\u1059\u135d-\u135f\u17b4-\u17d3"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20f0\u3099\u309a\ufe20-\ufe2f"
)
_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007"
    "\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_WORD = re.compile(rf"(?:[^\W_]|[{_MARKS}])+")
_DENSE_RUN = re.compile(rf"[{_DENSE}]+|[^{_DENSE}]+")
_HAS_DENSE = re.compile(rf"[{_DENSE}]")


class Hits(NamedTuple):
    """Email ids (ascending) that an index knows to match, and the modseq it has
    reached: emails created later must be looked at directly, and ids of emails
    destroyed later may still be there."""

    ids: array[int]  # "Q"
    watermark: int


# --- words -------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Return the words of a text in order, as they are indexed."""
    return _words(text, last=True)


def _words(text: str, *, last: bool) -> list[str]:
    """``last`` keeps the single character at the end of a dense run."""
    if text.isascii():
        found = _ASCII_WORD.findall(text.lower())
    else:
        text = fold(text)
        found = _WORD.findall(text)
        if _HAS_DENSE.search(text):
            found = [part for word in found for part in _split(word, last=last)]
    return [word[:MAX_WORD] for word in found] if _any_long(found) else found


def fold(text: str) -> str:
    """Return text as it is compared: NFKC, case folded."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", text)


def _any_long(found: list[str]) -> bool:
    return bool(found) and max(map(len, found)) > MAX_WORD


def _split(word: str, *, last: bool) -> list[str]:
    """Cut dense runs into pairs."""
    if not _HAS_DENSE.search(word):
        return [word]
    parts: list[str] = []
    for run in _DENSE_RUN.findall(word):
        if len(run) == 1 or not _HAS_DENSE.match(run):
            parts.append(run)
        else:
            parts += [run[at : at + 2] for at in range(len(run) - 1)]
            if last:
                parts.append(run[-1])
    return parts


# --- queries -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """All ``words`` occur in ``field`` ("text" is any of them, word by word).

    With ``phrase`` they are consecutive, in one field.  With ``prefix`` the last one
    is the beginning of a word.
    """

    field: str
    words: tuple[str, ...]
    phrase: bool = False
    prefix: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class And:
    """All parts hold; without parts, everything matches."""

    parts: tuple[Query, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Or:
    """Some part holds; without parts, nothing matches."""

    parts: tuple[Query, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Query


Query = Term | And | Or | Not
_PIECE = re.compile(r'"([^"]*)"?|([^\s"]+)')


def parse(field: str, value: str) -> Query:
    """Return the query for what a person typed (RFC 8621 section 4.4.1).

    All words must occur in the field ("text" or one of ``FIELDS``); words in double
    quotes are consecutive; ``*`` at the end of a word makes it a prefix.  A blank
    value matches everything, one that has no word nothing.
    """
    if not value.strip():
        return And(())
    terms: list[Query] = []
    for quoted, plain in _PIECE.findall(value):
        terms += _terms(field, quoted or plain, phrase=bool(quoted))
        if len(terms) >= MAX_WORDS:
            break
    if not terms:
        return Or(())
    return terms[0] if len(terms) == 1 else And(tuple(terms))


def _terms(field: str, text: str, *, phrase: bool) -> list[Query]:
    """Return the terms of one quoted or plain piece.

    A plain piece that falls into several words, like an address, is a phrase.
    """
    stem = text.rstrip("*")
    found = words(stem)
    if not found:
        return []
    if len(found[-1]) == 1 and _words(stem, last=False)[-1] != found[-1]:
        found.pop()  # it ends a dense run: its pair says as much
    begins = len(found[-1]) == 1 and _HAS_DENSE.match(found[-1]) is not None
    prefix = begins or (stem != text and not phrase)
    return [Term(field, tuple(found[:MAX_WORDS]), len(found) > 1, prefix)]


# --- the text of a message ---------------------------------------------------


def pack(headers: str, body: str) -> bytes:
    """Return the text of a message as it is stored: zstd of "headers NUL body".

    ``headers`` holds one ``name: value`` a line.
    """
    text = f"{headers}\0{body}".encode("utf-8", "surrogatepass")
    return _local.compressor.compress(text)


def unpack(packed: bytes) -> tuple[str, str]:
    """Return (headers, body); ValueError when they are not what ``pack`` wrote."""
    try:
        if zstandard.frame_content_size(packed) > _MAX_TEXT:
            raise ValueError("packed text is too large")
        text = _local.decompressor.decompress(packed, max_output_size=_MAX_TEXT)
    except zstandard.ZstdError as e:
        raise ValueError("not a packed text") from e
    try:
        decoded = text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        decoded = text.decode("utf-8", "replace")
    headers, _, body = decoded.partition("\0")
    return headers, body


def fields_of(headers: str, body: str) -> dict[str, str]:
    """Return the text of each of ``FIELDS`` that a message has."""
    found = {"body": body} if body else {}
    for line in headers.split("\n"):
        name, colon, value = line.partition(": ")
        if colon and name in FIELDS:
            found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


class _Tools(threading.local):
    """A compressor and decompressor per thread: making one costs 30 us."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        self.decompressor = zstandard.ZstdDecompressor()


_local = _Tools()


# --- matching without an index -----------------------------------------------


class Text:
    """One message, to be matched directly: the tail that no index has yet."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._words = {name: words(text) for name, text in fields.items()}

    def matches(self, query: Query) -> bool:
        """Return what an index would say of this message."""
        match query:
            case Term():
                return self._term(query)
            case And(parts):
                return all(map(self.matches, parts))
            case Or(parts):
                return any(map(self.matches, parts))
            case Not(part):
                return not self.matches(part)

    def _term(self, term: Term) -> bool:
        names = FIELDS if term.field == "text" else (term.field,)
        lists = [self._words[name] for name in names if name in self._words]
        if term.phrase:
            return any(_has_phrase(found, term) for found in lists)
        *whole, last = term.words
        if term.prefix:
            ends = any(w.startswith(last) for found in lists for w in found)
        else:
            ends = any(last in found for found in lists)
        return ends and all(any(w in found for found in lists) for w in whole)


def _has_phrase(found: list[str], term: Term) -> bool:
    *head, last = term.words
    count = len(head)
    for at in range(len(found) - count):
        if found[at : at + count] == head:
            end = found[at + count]
            if end == last or (term.prefix and end.startswith(last)):
                return True
    return False
