"""Header values for outgoing mail: encoded, quoted and folded.

Lines are at most 78 octets where the content allows (RFC 5322 section 2.1.1);
what is beyond ASCII travels in encoded words (RFC 2047) or extended parameters
(RFC 2231).
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from mailserverd.core.names import a_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LINE = 78
_WORD_OCTETS = 45  # of text in one encoded word, so that the word is <= 75 octets
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+")
_Q_SAFE = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/"
)
_SPACES = re.compile(r"( +)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BREAKS = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]+")
_FOLD = re.compile(r"\n(?=[ \t]+[^ \t\n])")
_BAD_ITEM = re.compile(r"[\x00-\x20\x7f<>]")
_LOCAL = re.compile(
    r'[^\x00-\x20\x7f-\x9f<>()\[\]:;@\\,"]+|"(?:[^\x00-\x1f\x7f"\\]|\\[\x20-\x7e])*+"'
)
_DOMAIN = re.compile(
    r'[^\x00-\x20\x7f-\x9f<>()\[\]:;@\\,"]*|\[[^\x00-\x20\x7f-\x9f<>()\[\]\\,"]*\]'
)
_PARAM_LINE = 60  # octets of a parameter value on one line


class ComposeError(ValueError):
    """What was asked for cannot be written as a message; the text says why."""


def fold(name: str, words: Iterable[str]) -> str:
    """Return a field whose words are joined by one space, folded between them."""
    line = f"{name}:"
    lines = []
    for word in words:
        if len(line) + 1 + len(word) > LINE and len(line) > len(name) + 1:
            lines.append(line)
            line = ""
        line += f" {word}"
    return "\r\n".join([*lines, line]) + "\r\n"


def text_field(name: str, text: str) -> str:
    """Return an unstructured field (Subject and the like) for decoded text.

    Line breaks, tabs and controls become spaces.  Reading it gives the text back.
    """
    text = _BREAKS.sub(" ", text)
    if text != text.strip():
        return fold(name, encoded_words(text))
    if not text.isascii() or "=?" in text:
        return fold(name, _text_words(text))
    return _fold_text(name, text)


def _fold_text(name: str, text: str) -> str:
    """Fold plain text before its own spaces, all of which are kept."""
    pieces = _SPACES.split(text)
    if any(len(piece) > LINE * 10 for piece in pieces):
        return fold(name, encoded_words(text))
    line, lines = f"{name}: {pieces[0]}", []
    for space, word in zip(pieces[1::2], pieces[2::2], strict=True):
        if len(line) + len(space) + len(word) > LINE:
            lines.append(line)
            line = space + word
        else:
            line += space + word
    return "\r\n".join([*lines, line]) + "\r\n"


def _text_words(text: str) -> list[str]:
    """Encode from the first to the last word that needs it; the rest stays plain."""
    words = text.split(" ")
    odd = [
        place
        for place, word in enumerate(words)
        if not word or not word.isascii() or "=?" in word
    ]
    first, last = odd[0], odd[-1]
    if any(len(word) > LINE for word in (*words[:first], *words[last + 1 :])):
        return list(encoded_words(text))
    middle = " ".join(words[first : last + 1])
    return [*words[:first], *encoded_words(middle), *words[last + 1 :]]


def encoded_words(text: str) -> Iterator[str]:
    """Yield encoded words of at most 75 octets that together decode to the text.

    Characters are never split; Q or B, whichever is shorter.
    """
    data = text.encode()
    safe = sum(octet in _Q_SAFE or octet == ord(" ") for octet in data)
    q_is_shorter = 3 * (len(data) - safe) + safe <= len(data) * 4 / 3
    limit = 60 if q_is_shorter else _WORD_OCTETS
    piece, size = bytearray(), 0
    for char in text:
        octets = char.encode()
        cost = _q_cost(octets) if q_is_shorter else len(octets)
        if piece and size + cost > limit:
            yield _word(bytes(piece), q_is_shorter)
            piece, size = bytearray(), 0
        piece += octets
        size += cost
    if piece:
        yield _word(bytes(piece), q_is_shorter)


def _q_cost(octets: bytes) -> int:
    return 1 if octets[0] in _Q_SAFE or octets == b" " else 3 * len(octets)


def _word(octets: bytes, q_encoding: bool) -> str:
    if not q_encoding:
        return f"=?utf-8?B?{base64.b64encode(octets).decode()}?="
    text = "".join(
        chr(octet)
        if octet in _Q_SAFE
        else "_"
        if octet == ord(" ")
        else f"={octet:02X}"
        for octet in octets
    )
    return f"=?utf-8?Q?{text}?="


def phrase(name: str) -> list[str]:
    """Return the words of a display name: atoms, a quoted string or encoded words."""
    name = _BREAKS.sub(" ", name)
    if not name.isascii() or "=?" in name or len(name) > LINE * 5:
        return list(encoded_words(name))
    if _ATOMS.fullmatch(name) and name == " ".join(name.split()):
        return name.split(" ")
    return ['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"']


def mailbox(name: str | None, email: str) -> list[str]:
    """Return the words of one mailbox; ComposeError for an impossible address.

    Incomplete addresses of drafts ("joe", "joe@") are written as they are.  A
    domain beyond ASCII is written in A-labels unless the local part needs
    SMTPUTF8 anyway.
    """
    local, at, domain = email.rpartition("@") if "@" in email else (email, "", "")
    if not _LOCAL.fullmatch(local) or not _DOMAIN.fullmatch(domain):
        raise ComposeError(f"{email!r} is no address")
    if local.isascii() and not domain.isascii():
        domain = a_labels(domain) or domain
    if not name:
        return [f"{local}@{domain}" if domain else f"<{local}{at}>"]
    return [*phrase(name), f"<{local}{at}{domain}>"]


def address_field(
    name: str, groups: Sequence[tuple[str | None, Sequence[tuple[str | None, str]]]]
) -> str:
    """Return an address field for ``[(group name or None, [(name, email), ...])]``."""
    words: list[str] = []
    for label, members in groups:
        inside: list[str] = []
        for person, email in members:
            inside += mailbox(person, email)
            inside[-1] += ","
        if label is None:
            words += inside
            continue
        start = phrase(label)
        start[-1] += ":"
        if inside:
            inside[-1] = inside[-1][:-1]
            words += [*start, *inside]
        else:
            words += start
        words[-1] += ";,"
    if words:
        words[-1] = words[-1][:-1]
    return fold(name, words)


def bracket_field(name: str, items: Iterable[str], separator: str) -> str:
    """Return a field of ``<item>``s: message ids, or URLs (RFC 2369)."""
    words = []
    for item in items:
        if _BAD_ITEM.search(item) or not item.isascii() or not item:
            raise ComposeError(f"{item!r} cannot stand between angle brackets")
        words.append(f"<{item}>{separator}")
    if words and separator:
        words[-1] = words[-1][: -len(separator)]
    return fold(name, words)


def raw_field(name: str, value: str) -> str:
    """Return a field whose value is given as it shall stand, folds included."""
    value = value.replace("\r\n", "\n")
    if _CONTROL.search(_FOLD.sub("", value).replace("\t", "")):
        raise ComposeError(f"{name} has line breaks that are no folding, or controls")
    if value[:1] not in {" ", "\t"}:
        value = f" {value}"
    return f"{name}:{value}\n".replace("\n", "\r\n")


def params(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return ``name=value`` words with semicolons between, RFC 2231 where needed."""
    words: list[str] = []
    for name, value in pairs:
        words += _param(name, _BREAKS.sub(" ", value))
    return [f"{word};" for word in words[:-1]] + words[-1:]


def _param(name: str, value: str) -> list[str]:
    if value.isascii() and len(value) <= _PARAM_LINE and "=?" not in value:
        if _TOKEN.fullmatch(value):
            return [f"{name}={value}"]
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return [f'{name}="{escaped}"']
    pieces = list(_percent_pieces(value))
    if len(pieces) == 1:
        return [f"{name}*=utf-8''{pieces[0]}"]
    return [
        f"{name}*{number}*=" + ("" if number else "utf-8''") + piece
        for number, piece in enumerate(pieces)
    ]


def _percent_pieces(value: str) -> Iterator[str]:
    """Percent-encode in pieces that fit a line, never splitting an escape."""
    piece = ""
    for char in value:
        encoded = quote(char, safe="!#$&+-.^_`|~")
        if piece and len(piece) + len(encoded) > _PARAM_LINE - 10:
            yield piece
            piece = ""
        piece += encoded
    yield piece
