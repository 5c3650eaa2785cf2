"""Which messages belong together: base subject and thread keys."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_SUBJECT = 1000  # characters looked at
_MAX_KEYS = 64
_KEY_SIZE = 12  # octets
_BLOB = r"\[[^\[\]]*+\]\s*+"
_LEADER = re.compile(rf"(?:{_BLOB})*+(?:re|fwd?)\s*+(?:{_BLOB})?:|\s++", re.IGNORECASE)
_LEADING_BLOB = re.compile(_BLOB)
_TRAILER = re.compile(r"\(fwd\)$", re.IGNORECASE)
_FORWARD = re.compile(r"\[fwd:(.*)\]$", re.IGNORECASE | re.DOTALL)
# "Re:" and "Fwd:" as mail programs of other languages write them.
_FOREIGN = re.compile(
    r"(?:aw|wg|sv|vs|vb|antw|antwort|doorst|rv|enc|tr|ref|odp|pd|ynt|ilt|r|i|rif|"
    r"res|回复|回覆|转发|轉寄|答复)(?:\[\d+\])?\s*[:：]\s*",  # noqa: RUF001 - as sent
    re.IGNORECASE,
)


def base_subject(subject: str) -> str:
    """Return the base subject (RFC 5256 section 2.1) of a decoded subject.

    Only the first 1000 characters count.
    """
    text = " ".join(subject[:_MAX_SUBJECT].split())
    while True:
        text = _without_leaders(_without_trailers(text))
        forward = _FORWARD.match(text)
        if forward is None:
            return text
        text = forward[1].strip()


def _without_trailers(text: str) -> str:
    while True:
        shorter = _TRAILER.sub("", text).rstrip()
        if shorter == text:
            return text
        text = shorter


def _without_leaders(text: str) -> str:
    start = 0
    while True:
        leader = _LEADER.match(text, start)
        if leader is None:
            leader = _LEADING_BLOB.match(text, start)
            if leader is None or leader.end() == len(text):
                return text[start:]
        start = leader.end()


def thread_subject(base: str) -> str:
    """Return what two subjects of one thread share (RFC 8621 section 3).

    ``base`` is a base subject; reply prefixes of other languages, white space and
    case are ignored too.
    """
    while match := _FOREIGN.match(base):
        base = base_subject(base[match.end() :])
    return "".join(base.split()).casefold()


def thread_keys(ids: Iterable[bytes], base: str) -> tuple[bytes, ...]:
    """Return one 12-octet key per message id, each bound to the base subject.

    Two messages share a key only if they share an id *and* a base subject, which
    is the rule of RFC 8621 section 3.  ``ids``: Message-ID first, then In-Reply-To
    and References; of very many, the first and the last are kept.
    """
    unique = list(dict.fromkeys(_normal(found) for found in ids))
    if len(unique) > _MAX_KEYS:
        unique = unique[: _MAX_KEYS // 2] + unique[-_MAX_KEYS // 2 :]
    subject = b"\x00" + thread_subject(base).encode()
    return tuple([_key(found + subject) for found in unique])


def _key(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_KEY_SIZE).digest()


def _normal(found: bytes) -> bytes:
    """Ids whose quoting differs are the same (RFC 5256 section 2.2)."""
    return found.replace(b'"', b"").replace(b"\\", b"") if b'"' in found else found
