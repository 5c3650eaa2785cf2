"""The MIME scanner: one walk over the octets yields the tree with its offsets.

RFC 2045, 2046 and 2049 as far as mail follows them.  Nothing in a message makes
it fail; what cannot be understood is text/plain (RFC 2045 section 5.2), and what
exceeds a limit is opaque.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

from mailserverd.mail.headers import BLANK, FIELD
from mailserverd.mail.octets import search
from mailserverd.mail.params import (
    TEXT_PLAIN,
    ContentType,
    parse_content_type,
)
from mailserverd.mail.transfer import is_identity
from mailserverd.mail.words import unfold

if TYPE_CHECKING:
    from mailserverd.mail.octets import Octets

MAX_DEPTH = 50  # multiparts and enclosed messages around a part
MAX_PARTS = 1000
MAX_HEADER = 512 << 10  # octets of header blocks that are read, in the whole message
_MAX_NEAR_MISSES = 10_000  # lines that start like a delimiter and are none
_MAX_DELIMITER = 1000  # octets of such a line after its boundary
_PADDING = b" \t\r\n"
_MESSAGE = ContentType("message", "rfc822", (), b"")
_LINE = re.compile(rb"([^\s:]++)[ \t]*+:([^\n]*+)\n?|[^\n]*+\n|[^\n]++")
_OPAQUE = ContentType("application", "octet-stream", (), b"")
_MESSAGES = frozenset({"rfc822", "global"})


class Entity:
    """A MIME entity while it is being found; ``model.Part`` is what is kept.

    ``first`` and ``last`` map lower-case field names to unfolded values; they
    differ where a field is repeated: MIME takes the first, JMAP the last.
    """

    __slots__ = (
        "body_end",
        "body_start",
        "children",
        "content",
        "first",
        "header_start",
        "index",
        "last",
        "nested",
        "parent",
        "section",
    )

    def __init__(self, index: int, parent: int, start: int) -> None:
        self.index = index
        self.parent = parent
        self.header_start = start
        self.body_start = start
        self.body_end = start
        self.section = ""
        self.content = TEXT_PLAIN
        self.first: dict[bytes, bytes] = {}
        self.last: dict[bytes, bytes] = {}
        self.children: list[Entity] = []
        self.nested = False


class _Delimiter(NamedTuple):
    start: int  # of its line
    after: int  # where the next part starts
    closing: bool


class _Place(NamedTuple):
    """Where an entity stands."""

    parent: int
    depth: int
    prefix: str  # the section that its children's numbers are appended to
    numbered: bool  # the prefix is the entity's own number: it is a body part
    digest: bool  # inside multipart/digest
    boundary: bytes  # of the enclosing multipart
    outer: int  # where the enclosing multipart must end
    header_limit: int = 0  # the blank line may be the one before a delimiter


_ROOT = _Place(-1, 0, "", False, False, b"", 0)


def scan(octets: Octets) -> Scan:
    """Find all entities of a message."""
    found = Scan(octets)
    found.entity(0, len(octets), _ROOT)
    return found


class Scan:
    """The walk and its result: ``entities`` in the order of their headers."""

    def __init__(self, octets: Octets) -> None:
        self._octets = octets
        self._header_budget = MAX_HEADER
        self._near_misses = 0
        self.entities: list[Entity] = []

    def entity(self, start: int, limit: int, place: _Place) -> Entity:
        """Find the entity inside [start, limit) and all that it encloses."""
        entity = Entity(len(self.entities), place.parent, start)
        self.entities.append(entity)
        entity.body_start = self._header(entity, start, place.header_limit or limit)
        entity.body_end = limit = max(limit, entity.body_start)
        raw = entity.first.get(b"content-type")
        if raw is not None:
            entity.content = parse_content_type(raw)
        elif place.digest:
            entity.content = _MESSAGE
        if entity.content.type == "multipart":
            self._multipart(entity, limit, place)
            if entity.children:
                return entity
            beyond = place.depth >= MAX_DEPTH or len(self.entities) >= MAX_PARTS
            entity.content = _OPAQUE if beyond else TEXT_PLAIN
        self._leaf_section(entity, place)
        if entity.content.type == "message" and self._encloses(entity, place.depth):
            self._enclosed(entity, place)
        return entity

    def _leaf_section(self, entity: Entity, place: _Place) -> None:
        if place.numbered:
            entity.section = place.prefix
        elif place.parent >= 0:  # the only part of an enclosed message
            entity.section = f"{place.prefix}.1"

    def _encloses(self, entity: Entity, depth: int) -> bool:
        """Whether a message/* part can be walked into: its octets are not encoded."""
        encoding = entity.first.get(b"content-transfer-encoding", b"")
        return (
            entity.content.subtype in _MESSAGES
            and is_identity(encoding_name(encoding))
            and depth < MAX_DEPTH
            and len(self.entities) < MAX_PARTS
        )

    def _enclosed(self, entity: Entity, place: _Place) -> None:
        inside = _Place(
            entity.index,
            place.depth + 1,
            entity.section or "1",
            False,
            False,
            place.boundary,
            place.outer,
        )
        child = self.entity(entity.body_start, entity.body_end, inside)
        child.nested = True
        entity.children.append(child)
        entity.body_end = max(entity.body_end, child.body_end)

    def _header(self, entity: Entity, start: int, limit: int) -> int:
        """Read a header block; return where the body starts."""
        octets = self._octets
        if octets[start : min(start + 2, limit)] == b"\r\n":
            return start + 2
        if octets[start : min(start + 1, limit)] == b"\n":
            return start + 1
        blank = search(BLANK, octets, start, limit)
        end, body_start = (blank.start() + 1, blank.end()) if blank else (limit, limit)
        size = min(end - start, self._header_budget)
        self._header_budget -= size
        block = octets[start : start + size]
        lower = _fields(block)
        if (b"", b"") in lower and size == end - start:
            length = _header_length(block, blank is not None)
            if length < size:  # the rest of it is already the body
                body_start = start + length
                lower = _fields(block[:length])
        entity.last = last = dict(lower)
        entity.first = dict(reversed(lower)) if len(last) != len(lower) else last
        return body_start

    def _multipart(self, entity: Entity, limit: int, place: _Place) -> None:
        boundary = entity.content.boundary
        if not boundary or place.depth >= MAX_DEPTH:
            return
        if boundary == place.boundary:  # broken senders nest equal boundaries
            limit = place.outer
        needle = b"\n--" + boundary
        numbers = itertools.count(1)
        dot = f"{place.prefix}." if place.prefix else ""
        digest = entity.content.subtype == "digest"
        here = self._delimiter(needle, entity.body_start - 1, limit)
        while here and not here.closing and len(self.entities) < MAX_PARTS:
            following = self._delimiter(needle, here.after - 1, limit)
            if following is None and here.after >= limit and entity.children:
                break
            newline = following.start if following else limit
            end = self._part_end(here.after, newline)
            inside = _Place(
                entity.index,
                place.depth + 1,
                f"{dot}{next(numbers)}",
                True,
                digest,
                boundary,
                limit,
                max(newline + 1, here.after) if following else limit,
            )
            child = self.entity(here.after, max(end, here.after), inside)
            entity.children.append(child)
            if child.body_end > newline + 1:  # it ended the equal boundary itself
                following = self._delimiter(needle, child.body_end - 1, limit)
            here = following
        if entity.children:
            entity.section = place.prefix
            if boundary == place.boundary:
                entity.body_end = here.after if here else limit

    def _part_end(self, start: int, newline: int) -> int:
        """Leave out the line end that belongs to the delimiter (RFC 2046 5.1.1)."""
        if newline > start and self._octets[newline - 1 : newline] == b"\r":
            return newline - 1
        return newline

    def _delimiter(self, needle: bytes, start: int, limit: int) -> _Delimiter | None:
        """Find the next delimiter line; the newline before it is at or after start.

        The boundary must stand alone or before white space, so that "foo" does
        not end what "foobar" delimits (RFC 2046 section 5.1.1 allows any prefix).
        """
        octets = self._octets
        while (place := octets.find(needle, max(start, 0), limit)) >= 0:
            after = place + len(needle)
            end = octets.find(b"\n", after, min(after + _MAX_DELIMITER, limit))
            if end < 0 and after + _MAX_DELIMITER >= limit:
                end = limit
            closing = octets[after : after + 2] == b"--"
            rest = octets[after + 2 * closing : end] if end >= 0 else b"-"
            if not rest or rest[0] in _PADDING:
                return _Delimiter(place, min(end + 1, limit), closing)
            self._near_misses += 1
            if self._near_misses > _MAX_NEAR_MISSES:
                return None
            start = after
        return None


def _fields(block: bytes) -> list[tuple[bytes, bytes]]:
    """Return lower-case names and unfolded values; both empty for a line of junk."""
    block = block.translate(None, b"\r\x00").replace(b"\n ", b" ")
    if b"\n\t" in block:
        block = block.replace(b"\n\t", b"\t")
    return [(name.lower(), value) for name, value in _LINE.findall(block)]


def _header_length(block: bytes, blank: bool) -> int:
    """Return where the fields end when some lines of the block are none.

    Lines between fields are ignored (mbox "From ", broken folding).  Lines after
    the last field, or all lines when none is a field, are already the body, and
    so is what follows a line like a delimiter.  Without a blank line the header
    ends at the first line that is no field.
    """
    last_field = 0
    for match in FIELD.finditer(block):
        if match[1] is not None:
            last_field = match.end()
        elif match[0].startswith(b"--") or (last_field and not blank):
            break
    return last_field


def encoding_name(raw: bytes) -> str:
    """Return a Content-Transfer-Encoding in lower case, "7bit" when empty."""
    if b";" in raw or b"(" in raw or b"\n" in raw:
        raw = unfold(raw).partition(b";")[0].partition(b"(")[0]
    return raw.strip(b" \t\r\"'").lower().decode("latin-1") or "7bit"
