"""Search snippets (RFC 8621 section 5): the place where a text matches, marked.

Words are compared as the search index compares them (``storage.text``), so that what
was found is what is shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from protocols.jmap.wire import ids
from storage.model import Condition
from storage.text import MAX_WORD, And, Or, Term, fold, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.model import Filter
    from storage.text import Query

MAX_OCTETS = 255  # of a preview
BEFORE = 40  # characters of context in front of the first match
MAX_WORDS = 64
SUBJECT, BODY = frozenset({"text", "subject"}), frozenset({"text", "body"})
_WORD = re.compile(r"\w+")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

Wanted = tuple[tuple[str, str, bool], ...]  # field, folded word, whether a prefix
Item = tuple[int, bytes, str]  # email id, list JSON, body text


def wanted(filter_: Filter | None) -> Wanted:
    """Return the words that a filter looks for in subjects and bodies.

    What stands under NOT is not looked for.
    """
    found: dict[tuple[str, str, bool], None] = {}
    waiting = [] if filter_ is None else [filter_]
    while waiting and len(found) < MAX_WORDS:
        here = waiting.pop()
        if not isinstance(here, Condition):
            waiting += here.conditions if here.op != "NOT" else ()
        elif here.op in SUBJECT | BODY and isinstance(here.value, str):
            for term in _terms(parse(here.op, here.value)):
                *whole, last = term.words
                found.update(dict.fromkeys((here.op, word, False) for word in whole))
                found[here.op, last, term.prefix] = None
    return tuple(found)


def _terms(query: Query) -> list[Term]:
    match query:
        case Term():
            return [query]
        case And(parts) | Or(parts):
            return [term for part in parts for term in _terms(part)]
        case _:
            return []


def make(words: Wanted, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the SearchSnippets of emails; null where nothing matches."""
    in_subject = [(w, prefix) for field, w, prefix in words if field in SUBJECT]
    in_body = [(w, prefix) for field, w, prefix in words if field in BODY]
    found: list[dict[str, Any]] = []
    for number, list_json, body in items:
        subject = orjson.loads(list_json)["subject"] or "" if in_subject else ""
        found.append(
            {
                "emailId": ids.email(number),
                "subject": _subject(subject, in_subject),
                "preview": _preview(body, in_body),
            }
        )
    return found


Words = list[tuple[str, bool]]


def _matches(text: str, words: Words, limit: int) -> list[tuple[int, int]]:
    """Return where words stand in a text, in order, not overlapping."""
    if not words or not text or (start := _earliest(text, words)) < 0:
        return []
    places: list[tuple[int, int]] = []
    for match in _WORD.finditer(text, start):
        places += _in_run(match.group(), match.start(), words)
        if len(places) >= limit:
            break
    return places


def _earliest(text: str, words: Words) -> int:
    """Return where looking at single words has to begin; -1 when nothing matches."""
    folded = fold(text)
    found = [at for word, _ in words if (at := folded.find(word)) >= 0]
    if not found:
        return -1
    if len(folded) != len(text):
        return 0
    return max(0, text.rfind(" ", 0, min(found)))


def _in_run(run: str, start: int, words: Words) -> list[tuple[int, int]]:
    """Return the place in one run of letters: all of it, or a piece without spaces."""
    folded = fold(run)
    for word, prefix in words:
        if folded[:MAX_WORD] == word or (prefix and folded.startswith(word)):
            return [(start, start + len(run))]
    if run.isascii() or len(folded) != len(run):
        return []
    for word, _ in words:  # scripts without spaces are indexed in pairs
        at = folded.find(word) if not word.isascii() else -1
        if at >= 0:
            return [(start + at, start + at + len(word))]
    return []


def _subject(text: str, words: Words) -> str | None:
    places = _matches(text, words, 1000)
    return _marked(text, places, 0, len(text)) if places else None


def _preview(body: str, words: Words) -> str | None:
    places = _matches(body, words, 50)
    if not places:
        return None
    first = places[0][0]
    start = max(0, first - BEFORE)
    if start:
        space = body.find(" ", start, first)
        start = space + 1 if space >= 0 else start
    end = min(len(body), start + MAX_OCTETS)
    while places[0][1] <= end:
        inside = [place for place in places if start <= place[0] and place[1] <= end]
        text = _marked(body, inside, start, end)
        over = len(text.encode()) - MAX_OCTETS
        if over <= 0:
            return text
        end -= max(1, over // 4)
    return None  # one word fills it all


def _marked(text: str, places: list[tuple[int, int]], start: int, end: int) -> str:
    pieces: list[str] = []
    at = start
    for first, last in places:
        pieces += [_escape(text[at:first]), "<mark>", _escape(text[first:last])]
        pieces.append("</mark>")
        at = last
    pieces.append(_escape(text[at:end]))
    return "".join(pieces)


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(char, char) for char in text)
