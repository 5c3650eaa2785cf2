"""The Authentication-Results field (RFC 8601): what we add, and forgeries of it."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from auth.mail.canonical import WSP
from mailserverd.core.names import a_labels

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "Authentication-Results"
MAX_VALUE = 320  # octets of a property; longer ones are cut
MAX_COMMENT = 200
LINE = 78
MAX_FIELD = 1 << 13  # octets of a foreign field that is parsed
MAX_FIELDS = 100  # of foreign ones; what comes after them is not believed

# A value stands unquoted as a MIME token or as a plain mailbox or @domain.
_TOKEN = re.compile(r"[-A-Za-z0-9!#$%&'*+.^_`{|}~]+")
_MAILBOX = re.compile(
    r"(?:[-\w!#$%&'*+/=?^`{|}~]+(?:\.[-\w!#$%&'*+/=?^`{|}~]+)*)?@[-\w]+(?:\.[-\w]+)*"
)
_CONTROL = re.compile("[\x00-\x1f\x7f\x80-\x9f\u2028\u2029\ud800-\udfff]+")
_ID = re.compile(rb"[-A-Za-z0-9._\x80-\xff]*")
_FIELD = re.compile(
    rb"^%b(?:[ \t]|\r\n[ \t])*+:([^\r]*+(?:\r(?!\n(?![ \t]))[^\r]*+)*+)(?:\r\n|\Z)"
    % NAME.encode(),
    re.IGNORECASE | re.MULTILINE,
)
_COMMENT_MARK = re.compile(rb"[()]|\\.", re.DOTALL)
_COMMENT = re.compile(rb"\([^()]*\)")
_NOISE = re.compile(rb"[^-a-z0-9.\x80-\xff]+")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class MethodResult:
    """One method's outcome: ``dkim=pass (comment) reason="..." header.d=example.com``.

    ``properties`` are ``("header.d", "example.com")`` pairs; empty values are left
    out.  All texts may be a stranger's: they are quoted, and cut, when written.
    """

    method: str
    result: str
    reason: str = ""
    comment: str = ""
    properties: tuple[tuple[str, str], ...] = ()


def build(authserv_id: str, results: Iterable[MethodResult]) -> bytes:
    """Return the whole field, folded, with its final CRLF (section 2.2)."""
    lines = [f"{NAME}: {_value(authserv_id)}"]
    entries = [_entry(result) for result in results]
    for words in entries or [["none"]]:
        lines[-1] += ";"
        line = "\t" + words[0]
        for word in words[1:]:
            if len(line) + len(word) >= LINE:
                lines.append(line)
                line = "\t "
            else:
                line += " "
            line += word
        lines.append(line)
    return ("\r\n".join(lines) + "\r\n").encode("utf-8", "replace")


def _entry(result: MethodResult) -> list[str]:
    words = [f"{result.method}={result.result}"]
    if result.comment:
        words.append(f"({_comment(result.comment)})")
    if result.reason:
        words.append(f"reason={_value(result.reason)}")
    words += [f"{name}={_value(text)}" for name, text in result.properties if text]
    return words


def _value(text: str) -> str:
    text = _CONTROL.sub("?", text[:MAX_VALUE])
    if _TOKEN.fullmatch(text) or _MAILBOX.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _comment(text: str) -> str:
    text = _CONTROL.sub("?", text[:MAX_COMMENT])
    return re.sub(r"([()\\])", r"\\\1", text)


def bears(value: bytes, authserv_id: str) -> bool:
    """Return True when a field body claims to be ours, or might be read so.

    The name may hide behind comments, quotes, folding, case or a version; a field
    that cannot be parsed is ours if our name occurs in it at all, however it is taken
    apart (section 5).
    """
    ours = a_labels(authserv_id) or authserv_id.lower()
    found = _authserv_id(value[:MAX_FIELD]) if len(value) <= MAX_FIELD else None
    if found is None:
        name, text = ours.encode("utf-8", "replace"), value.lower()
        bare = _COMMENT.sub(b"", text)
        return name in _NOISE.sub(b"", text) or name in _NOISE.sub(b"", bare)
    theirs = found.decode("utf-8", "replace").strip()
    return (a_labels(theirs) or theirs.lower()) == ours


def _authserv_id(value: bytes) -> bytes | None:
    """Return the authserv-id of a field body, None when the body is malformed."""
    rest = _after_space(value)
    if rest is None:
        return None
    if rest.startswith(b'"'):
        quoted = _QUOTED.match(rest)
        if quoted is None:
            return None
        rest, inside = rest[quoted.end() :], quoted[1]
        word = re.sub(rb"\\(.)", rb"\1", inside, flags=re.DOTALL).strip(WSP)
    else:
        word = _ID.match(rest)[0]  # type: ignore[index]  # it matches anything
        rest = rest[len(word) :]
    rest = _after_space(rest)
    rest = _after_space(rest.lstrip(b"0123456789")) if rest is not None else None
    return word if word and rest is not None and rest[:1] in {b"", b";"} else None


def _after_space(text: bytes) -> bytes | None:
    """Return what follows white space and comments; None: one is not closed."""
    rest = text.lstrip(WSP)
    while rest.startswith(b"("):
        end = _comment_end(rest)
        if end is None:
            return None
        rest = rest[end:].lstrip(WSP)
    return rest


def _comment_end(text: bytes) -> int | None:
    depth = 0
    for mark in _COMMENT_MARK.finditer(text):
        depth += {b"(": 1, b")": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.end()
    return None


def forged(message: bytes, authserv_id: str) -> list[tuple[int, int]]:
    """Return the half-open spans (CRLF included) of fields that bear our name.

    Beyond MAX_FIELDS any such field counts as one that does.  Remove them after
    verifying DKIM and before adding our own.
    """
    end = 0 if message.startswith(b"\r\n") else message.find(b"\r\n\r\n") + 2
    found = _FIELD.finditer(message, 0, len(message) if end == 1 else end)
    return [
        field.span()
        for number, field in enumerate(found)
        if number >= MAX_FIELDS or bears(field[1], authserv_id)
    ]


def without_forged(message: bytes, authserv_id: str) -> bytes:
    """Return the message without the fields that bear our name (itself if none)."""
    spans = forged(message, authserv_id)
    if not spans:
        return message
    parts, at = [], 0
    for start, end in spans:
        parts.append(message[at:start])
        at = end
    return b"".join([*parts, message[at:]])
