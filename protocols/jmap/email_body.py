"""Body parts and body values of emails (RFC 8621 section 4.1.4).

Pure: what it reads of the message is given to it by ``Raw``; ``needs`` says
beforehand which octets that will be.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.mail.charsets import decode_charset
from mailserverd.mail.imap_wire import children_of
from mailserverd.mail.jmap_body import Bodies, split_bodies
from mailserverd.mail.parts import part_id
from mailserverd.mail.transfer import decode_transfer, is_identity
from protocols.jmap import header_forms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.mail.model import Part
    from protocols.jmap.email_properties import BodyPlan
    from protocols.jmap.header_forms import Spend
    from protocols.jmap.wire.ids import Blob

Extent = tuple[int, int]
EXACT = 64 * 1024  # octets up to which the decoded size is found by decoding
EDGE = 1024  # octets looked at of each end of a large base64 part
PREFIX = 256 * 1024  # octets beyond which only the start of a part is decoded
LF = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Raw:
    """Octets of the message, by where they lie: whole, or the pieces asked for.

    Of an ``unreadable`` message there are none.
    """

    pieces: dict[Extent, bytes]
    whole: bytes | None = None
    unreadable: bool = False

    def get(self, start: int, end: int) -> bytes:
        """Return message[start:end]."""
        if self.whole is not None:
            return self.whole[start:end]
        return self.pieces[start, end]


class BodyView:
    """The body of one message, as a plan wants it shown."""

    def __init__(
        self, plan: BodyPlan, parts: Sequence[Part], blob: Blob, spend: Spend
    ) -> None:
        self._plan = plan
        self._spend = spend
        self._parts = parts
        self._blob = blob
        self._bodies = split_bodies(parts)
        self._children = children_of(parts)
        self._headers = bool(plan.headers) or "headers" in plan.properties

    # --- what has to be read --------------------------------------------------

    def needs(self) -> set[Extent]:
        """Return the ranges of octets that ``show`` will read."""
        found: set[Extent] = set()
        for index in self._shown():
            part = self._parts[index]
            if self._headers:
                found.add((part.header_start, part.body_start))
            if "size" in self._plan.properties and part.type != "multipart":
                found |= _size_needs(part)
        if self._plan.values:
            found |= {self._value_extent(self._parts[i]) for i in self._valued()}
        return found

    def _shown(self) -> set[int]:
        lists = self._plan.lists
        if "bodyStructure" in lists:
            return {0, *self._below(0)}
        bodies: Bodies = self._bodies
        found: set[int] = set()
        for name, indexes in (
            ("textBody", bodies.text),
            ("htmlBody", bodies.html),
            ("attachments", bodies.attachments),
        ):
            if name in lists:
                found |= set(indexes)
        return found

    def _below(self, index: int) -> list[int]:
        """Return all parts inside a multipart, nothing of enclosed messages."""
        found: list[int] = []
        waiting = [index]
        while waiting:
            here = waiting.pop()
            if self._parts[here].type == "multipart":
                found += self._children[here]
                waiting += self._children[here]
        return found

    def _valued(self) -> list[int]:
        """Return the text parts whose values were asked for, each once."""
        wanted, bodies = self._plan.values_of, self._bodies
        indexes: list[int] = []
        if "all" in wanted:
            indexes += [0, *self._below(0)]
        if "text" in wanted:
            indexes += bodies.text
        if "html" in wanted:
            indexes += bodies.html
        return [i for i in dict.fromkeys(indexes) if self._parts[i].type == "text"]

    def _value_extent(self, part: Part) -> Extent:
        limit = self._plan.max_bytes
        if not limit:
            return part.body_start, part.body_end
        # an octet of UTF-8 takes at most three of any encoding, line ends aside
        enough = max(PREFIX, limit * 4 + 4096)
        return part.body_start, min(part.body_end, part.body_start + enough)

    # --- showing it -------------------------------------------------------------

    def show(self, raw: Raw) -> dict[str, Any]:
        """Return the body properties asked for."""
        lists, bodies = self._plan.lists, self._bodies
        found: dict[str, Any] = {}
        if "bodyStructure" in lists:
            found["bodyStructure"] = self._structure(raw)
        for name, indexes in (
            ("textBody", bodies.text),
            ("htmlBody", bodies.html),
            ("attachments", bodies.attachments),
        ):
            if name in lists:
                found[name] = [self._part(index, raw) for index in indexes]
        if self._plan.values:
            found["bodyValues"] = {
                part_id(self._parts[index]): self._value(self._parts[index], raw)
                for index in self._valued()
            }
        return found

    def _structure(self, raw: Raw) -> dict[str, Any]:
        """Return the tree of parts; subParts are there whenever there are any."""
        shown = {index: self._part(index, raw) for index in sorted(self._shown())}
        for index, part in shown.items():
            if self._parts[index].type == "multipart":
                part["subParts"] = [shown[child] for child in self._children[index]]
        return shown[0]

    def _part(self, index: int, raw: Raw) -> dict[str, Any]:
        part = self._parts[index]
        found = {
            name: _PART_PROPERTIES[name](self, part, raw)
            for name in self._plan.properties
        }
        if self._plan.headers:
            block = raw.get(part.header_start, part.body_start)
            found.update(header_forms.show(block, self._plan.headers, self._spend))
        return found

    def _blob_id(self, part: Part, _raw: Raw) -> str | None:
        if part.type == "multipart":
            return None
        whole = self._blob.part(part.body_start, part.body_end, part.encoding)
        return whole.render()

    def _size(self, part: Part, raw: Raw) -> int:
        if part.type == "multipart" or is_identity(part.encoding) or raw.unreadable:
            return part.size
        return _decoded_size(part, raw)

    def _header_list(self, part: Part, raw: Raw) -> list[dict[str, str]]:
        block = raw.get(part.header_start, part.body_start)
        return header_forms.show_all(block, self._spend)

    def _value(self, part: Part, raw: Raw) -> dict[str, Any]:
        if raw.unreadable:
            return {"value": "", "isEncodingProblem": True, "isTruncated": True}
        start, end = self._value_extent(part)
        data = raw.get(start, end)
        cut = end < part.body_end
        if cut:  # an escape or a quad may be cut in two: go back to a line end
            data = data[: data.rfind(b"\n") + 1] or data
        decoded, damaged = decode_transfer(data, part.encoding)
        text, unknown = decode_charset(decoded, part.param("charset"))
        text = text.replace("\r\n", "\n")
        limit = self._plan.max_bytes
        short, truncated = truncate(text, limit, html=part.subtype == "html")
        return {
            "value": short,
            "isEncodingProblem": unknown or (damaged and not cut),
            "isTruncated": truncated or cut,
        }


def truncate(text: str, limit: int, *, html: bool) -> tuple[str, bool]:
    """Cut to ``limit`` octets of UTF-8 (0: none), between characters and tags."""
    if not limit or len(text) * 4 <= limit:
        return text, False
    octets = text.encode()
    if len(octets) <= limit:
        return text, False
    short = octets[:limit].decode("utf-8", "ignore")
    if html and short.rfind("<") > short.rfind(">"):
        short = short[: short.rfind("<")]
    return short, True


def _size_needs(part: Part) -> set[Extent]:
    if is_identity(part.encoding):
        return set()
    if part.encoding != "base64" or part.size <= EXACT:
        return {(part.body_start, part.body_end)}
    start, end = part.body_start, part.body_end
    return {(start, start + EDGE), (end - EDGE, end)}


def _decoded_size(part: Part, raw: Raw) -> int:
    start, end = part.body_start, part.body_end
    if part.encoding != "base64" or part.size <= EXACT:
        return len(decode_transfer(raw.get(start, end), part.encoding)[0])
    # of a large attachment: computed from its lines, exact unless it is damaged
    head, tail = raw.get(start, start + EDGE), raw.get(end - EDGE, end)
    line_end = 2 if b"\r\n" in head else 1
    breaks = part.lines - (tail[-1] != LF)
    padding = tail.rstrip(b"\r\n").endswith(b"==") + tail.rstrip(b"\r\n").endswith(b"=")
    return (part.size - breaks * line_end) // 4 * 3 - padding


def _charset(_view: BodyView, part: Part, _raw: Raw) -> str | None:
    return part.param("charset") or ("us-ascii" if part.type == "text" else None)


def _content_id(_view: BodyView, part: Part, _raw: Raw) -> str | None:
    text = part.content_id
    inside = text[text.find("<") + 1 : text.rfind(">")] if "<" in text else text
    return inside.strip() or None


_PART_PROPERTIES: dict[str, Any] = {
    "partId": lambda _, part, __: None if part.type == "multipart" else part_id(part),
    "blobId": BodyView._blob_id,
    "size": BodyView._size,
    "name": lambda _, part, __: part.filename or None,
    "type": lambda _, part, __: f"{part.type}/{part.subtype}",
    "charset": _charset,
    "disposition": lambda _, part, __: part.disposition or None,
    "cid": _content_id,
    "language": lambda _, part, __: list(part.language) or None,
    "location": lambda _, part, __: part.location or None,
    "headers": BodyView._header_list,
    "subParts": lambda *_: None,
}
