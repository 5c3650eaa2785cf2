"""Body parts that clients give in Email/set create (RFC 8621 section 4.6)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.mail.build import BodyPart, Header, assemble, render_header
from mailserverd.mail.encode import ComposeError
from mailserverd.mail.params import parse_content_type
from protocols.jmap import email_values
from protocols.jmap.wire import headers as names
from protocols.jmap.wire.arguments import (
    Bad,
    list_of,
    mapping,
    nullable,
    string,
    unsigned,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_DEPTH = 20
MAX_PARTS = 1000
UTF8 = "utf-8"
_VALUE_MEMBERS = frozenset({"value", "isEncodingProblem", "isTruncated"})
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "partId": nullable(string),
    "blobId": nullable(string),
    "size": unsigned,
    "name": nullable(string),
    "type": string,
    "charset": nullable(string),
    "disposition": nullable(string),
    "cid": nullable(string),
    "language": nullable(list_of(string)),
    "location": nullable(string),
    "subParts": nullable(list_of(mapping)),
}
# which header field a property stands for: a part may not give one twice
_FIELDS = {
    "type": "content-type",
    "charset": "content-type",
    "name": "content-disposition",
    "disposition": "content-disposition",
    "cid": "content-id",
    "language": "content-language",
    "location": "content-location",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """A part whose content is in bodyValues, or a blob."""

    shape: BodyPart  # without content
    text: str | None = None
    blob_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Branch:
    """A multipart."""

    shape: BodyPart
    parts: tuple[Node, ...]


Node = Leaf | Branch


def body_values(given: Any) -> dict[str, str]:
    """``bodyValues``: the text of each partId."""
    found: dict[str, str] = {}
    for part_id, value in mapping(given).items():
        members = mapping(value)
        if set(members) - _VALUE_MEMBERS:
            raise Bad("EmailBodyValues")
        if members.get("isEncodingProblem") or members.get("isTruncated"):
            raise Bad("without isEncodingProblem and isTruncated")
        found[part_id] = string(members.get("value"))
    return found


class PartReader:
    """Reads EmailBodyParts; Bad for the first thing that is wrong with one."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._count = 0

    def node(self, given: dict[str, Any], default: str, depth: int = 1) -> Node:
        """Return a part with what is below it; ``default`` is its type if not given."""
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_PARTS:
            raise Bad("simpler")
        values = _checked(given)
        fields = _header_fields(given)
        shape = _shape(values, fields, default)
        if not shape.type.startswith("multipart/"):
            return self._leaf(values, shape)
        below = values.get("subParts")
        if not below or values.get("partId") or values.get("blobId"):
            raise Bad("a multipart of subParts")
        return Branch(
            shape, tuple(self.node(part, "text/plain", depth + 1) for part in below)
        )

    def _leaf(self, values: dict[str, Any], shape: BodyPart) -> Leaf:
        part_id, blob_id = values.get("partId"), values.get("blobId")
        if (part_id is None) == (blob_id is None) or values.get("subParts"):
            raise Bad("of a partId or a blobId")
        if blob_id is not None:
            return Leaf(shape, blob_id=blob_id)
        if values.get("charset") is not None or "size" in values:
            raise Bad("without charset and size where a partId is given")
        if part_id is None or part_id not in self._values:
            raise Bad("of a partId that is in bodyValues")
        return Leaf(dataclasses.replace(shape, charset=UTF8), self._values[part_id])


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        check = _CHECKS.get(name)
        if value is None:
            continue  # as good as left out
        if check is None:
            if names.parse(name) is None:
                raise Bad(f"without {name}")
            continue
        found[name] = check(value)
    return found


def _header_fields(given: dict[str, Any]) -> list[Header]:
    """Return header:* properties; none twice, no Content-Transfer-Encoding."""
    seen = {_FIELDS[name] for name in given if name in _FIELDS and given[name]}
    fields: list[Header] = []
    for name, value in given.items():
        wanted = names.parse(name)
        if wanted is None:
            continue
        if wanted.key in seen or not wanted.allowed:
            raise Bad(f"without {name} in this form, or given twice")
        if wanted.key == "content-transfer-encoding":
            raise Bad("without Content-Transfer-Encoding")
        seen.add(wanted.key)
        fields += email_values.headers(wanted, value)
    return fields


def _shape(values: dict[str, Any], fields: list[Header], default: str) -> BodyPart:
    media_type = values.get("type") or default
    charset: str | None = values.get("charset")
    params: tuple[tuple[str, str], ...] = ()
    typed = [one for one in fields if one.name.lower() == "content-type"]
    if typed:
        parsed = parse_content_type(_field_value(typed[-1]))
        media_type = f"{parsed.type}/{parsed.subtype}"
        charset = next((v for k, v in parsed.params if k == "charset"), None)
        kept = (p for p in parsed.params if p[0] not in {"charset", "boundary"})
        params = tuple(kept)
    return BodyPart(
        media_type.lower(),
        charset=charset or None,
        disposition=(values.get("disposition") or "").lower() or None,
        name=values.get("name") or None,
        cid=values.get("cid") or None,
        language=tuple(values.get("language") or ()),
        location=values.get("location") or None,
        headers=tuple(one for one in fields if one not in typed),
        params=params,
    )


def _field_value(header: Header) -> bytes:
    try:
        return render_header(header).partition(":")[2].strip().encode()
    except ComposeError as error:
        raise Bad(f"writable: {error}") from error


def leaves(node: Node) -> list[Leaf]:
    """Return all leaves, in order."""
    if isinstance(node, Leaf):
        return [node]
    return [leaf for part in node.parts for leaf in leaves(part)]


def fill(node: Node, blobs: Mapping[str, bytes]) -> BodyPart:
    """Put the content into the parts."""
    if isinstance(node, Branch):
        below = tuple(fill(part, blobs) for part in node.parts)
        return dataclasses.replace(node.shape, children=below)
    if node.text is not None:
        return dataclasses.replace(node.shape, content=node.text.encode())
    # an attachment must come out as it went in, text too
    message = node.shape.type.startswith("message/")
    return dataclasses.replace(
        node.shape,
        content=blobs[node.blob_id],
        encoding="" if message else "base64",
    )


def arrange(text: Node | None, html: Node | None, attachments: list[Node]) -> Node:
    """Arrange textBody, htmlBody and attachments as mail programs expect."""
    nodes = [node for node in (text, html, *attachments) if node is not None]
    if not nodes:
        return Leaf(BodyPart("text/plain", charset=UTF8), "")
    tree = assemble(
        text.shape if text else None,
        html.shape if html else None,
        [node.shape for node in attachments],
    )
    by_shape = {id(node.shape): node for node in nodes}
    return _regrown(tree, by_shape)


def _regrown(tree: BodyPart, by_shape: dict[int, Node]) -> Node:
    known = by_shape.get(id(tree))
    if known is not None:
        return known
    return Branch(tree, tuple(_regrown(part, by_shape) for part in tree.children))
