"""Parse a message once, at arrival: everything that reading it later needs.

``parse`` walks the octets (``scanner``), renders what IMAP answers with
(``imap_wire``) and what JMAP lists show, and extracts the text for search.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, NamedTuple

import orjson

from mailserverd.mail.addrlist import parse_addresses
from mailserverd.mail.charsets import decode_charset, guess
from mailserverd.mail.dates import parse_date
from mailserverd.mail.headers import as_text, jmap_addresses, message_ids
from mailserverd.mail.imap_wire import (
    render_addresses,
    render_body,
    render_bodystructure,
    render_envelope,
)
from mailserverd.mail.jmap_body import has_attachment, split_bodies
from mailserverd.mail.model import ParsedMessage, Part
from mailserverd.mail.octets import open_octets
from mailserverd.mail.params import parse_disposition
from mailserverd.mail.parts import (
    dump_parts,
    enclosed_root,
    find_part,
    load_parts,
    part_id,
)
from mailserverd.mail.scanner import Entity, Scan, encoding_name, scan
from mailserverd.mail.text import TextExtractor
from mailserverd.mail.threads import base_subject, thread_keys
from mailserverd.mail.transfer import TransferDecoder, decode_transfer

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

    from mailserverd.mail.headers import EmailAddress
    from mailserverd.mail.octets import Octets

__all__ = [
    "TransferDecoder",
    "decode_charset",
    "decode_transfer",
    "enclosed_root",
    "find_part",
    "load_parts",
    "parse",
    "part_id",
    "render_body",
]

Fields = dict[bytes, bytes]
_CACHED = 300  # octets; longer address fields seldom come again
_ADDRESS_FIELDS = (b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc")
_SEARCHED_FIELDS = (b"from", b"to", b"cc", b"bcc")


def parse(raw: bytes | mmap.mmap | memoryview) -> ParsedMessage:
    """Parse a message; never raises on its content.

    Memory: the message is not copied when it is bytes, or larger than 4 MiB;
    header blocks are read up to 512 KiB in all, text up to 1 MiB.
    """
    octets = open_octets(raw)
    found = scan(octets)
    parts = _parts(octets, found)
    bodies = split_bodies(parts)
    extractor = TextExtractor(octets, parts)
    root = _Root(found.entities[0].last)
    date = root.date
    attached = has_attachment(parts, bodies)
    return ParsedMessage(
        size=len(octets),
        header_size=parts[0].body_start,
        envelope=root.envelope(),
        bodystructure=render_bodystructure(parts),
        list_json=root.list_json(attached, extractor.preview(bodies)),
        part_table=dump_parts(parts),
        parts=parts,
        sent_at=date.epoch if date else None,
        message_id=guess(root.ids[0][0]) if root.ids[0] else "",
        thread_keys=thread_keys(itertools.chain(*root.ids), root.base_subject),
        base_subject=root.base_subject,
        sort_from=root.sort_key(b"from"),
        sort_to=root.sort_key(b"to"),
        has_attachment=attached,
        search_headers=root.search_lines(),
        search_text=extractor.search_text(bodies, _enclosed_subjects(found)),
    )


class _AddressField(NamedTuple):
    """An address field in the forms that are kept of it."""

    wire: bytes  # of ENVELOPE
    jmap: list[EmailAddress]
    text: str  # for search


def _address_field(value: bytes) -> _AddressField:
    return _cached_field(value) if len(value) <= _CACHED else _render_field(value)


def _render_field(value: bytes) -> _AddressField:
    parsed = parse_addresses(value)
    jmap = jmap_addresses(parsed)
    shown = [
        f"{one['name']} <{one['email']}>" if one["name"] else one["email"] or ""
        for one in jmap
    ]
    return _AddressField(render_addresses(parsed), jmap, ", ".join(shown))


# The same people write to the same people, and lists to their members.
_cached_field = functools.lru_cache(maxsize=1024)(_render_field)


class _Root:
    """The header of the message itself, in the forms that are kept of it."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._addresses = {
            name: _address_field(fields[name])
            for name in _ADDRESS_FIELDS
            if name in fields
        }
        subject = fields.get(b"subject")
        self.subject = None if subject is None else as_text(subject)
        self.base_subject = base_subject(self.subject) if self.subject else ""
        self.date = parse_date(fields[b"date"]) if b"date" in fields else None
        self.ids = (
            self._ids(b"message-id"),
            self._ids(b"in-reply-to"),
            self._ids(b"references"),
        )

    def _ids(self, name: bytes) -> list[bytes]:
        value = self._fields.get(name)
        return message_ids(value) if value else []

    def envelope(self) -> bytes:
        """Render ENVELOPE."""
        wires = {name: field.wire for name, field in self._addresses.items()}
        return render_envelope(self._fields, wires)

    def list_json(self, attached: bool, preview: str) -> bytes:
        """Render the JMAP properties that lists show (RFC 8621 section 4.1)."""
        message_id, in_reply_to, references = [
            [guess(one) for one in found] or None for found in self.ids
        ]
        properties = {
            "messageId": message_id,
            "inReplyTo": in_reply_to,
            "references": references,
            "sender": self._jmap(b"sender"),
            "from": self._jmap(b"from"),
            "to": self._jmap(b"to"),
            "cc": self._jmap(b"cc"),
            "bcc": self._jmap(b"bcc"),
            "replyTo": self._jmap(b"reply-to"),
            "subject": self.subject,
            "sentAt": self.date.jmap() if self.date else None,
            "hasAttachment": attached,
            "preview": preview,
        }
        return orjson.dumps(properties)

    def _jmap(self, name: bytes) -> list[EmailAddress] | None:
        field = self._addresses.get(name)
        return field.jmap if field else None

    def sort_key(self, name: bytes) -> str:
        """What RFC 5957 sorts by: the first display name, or the address."""
        addresses = self._jmap(name)
        if not addresses:
            return ""
        return (addresses[0]["name"] or addresses[0]["email"] or "").casefold()

    def search_lines(self) -> str:
        """Return the searchable fields decoded, one ``name: value`` a line."""
        lines = [
            f"{name.decode()}: {self._addresses[name].text}"
            for name in _SEARCHED_FIELDS
            if name in self._addresses
        ]
        if self.subject is not None:
            lines.append(f"subject: {self.subject}")
        return "\n".join(lines)


def _enclosed_subjects(found: Scan) -> dict[int, str]:
    return {
        entity.index: as_text(entity.last[b"subject"])
        for entity in found.entities
        if entity.nested and b"subject" in entity.last
    }


def _parts(octets: Octets, found: Scan) -> tuple[Part, ...]:
    entities = found.entities
    lines = _line_counts(octets, entities)
    return tuple(
        [_part(entity, count) for entity, count in zip(entities, lines, strict=True)]
    )


def _part(entity: Entity, lines: int) -> Part:
    fields, content = entity.first, entity.content
    encoding = fields.get(b"content-transfer-encoding")
    disposition = fields.get(b"content-disposition")
    parsed = parse_disposition(disposition) if disposition else None
    wire = b""
    if entity.children and content.type == "message":
        inside = entity.children[0].last
        wires = {
            name: _address_field(inside[name]).wire
            for name in _ADDRESS_FIELDS
            if name in inside
        }
        wire = render_envelope(inside, wires)
    return Part(
        entity.section,
        entity.parent,
        content.type,
        content.subtype,
        content.params,
        encoding_name(encoding) if encoding else "7bit",
        parsed.value if parsed else "",
        parsed.params if parsed else (),
        _value(fields, b"content-id"),
        _value(fields, b"content-description"),
        _languages(fields),
        "".join(_value(fields, b"content-location").split()),
        _value(fields, b"content-md5"),
        entity.header_start,
        entity.body_start,
        entity.body_end,
        lines,
        wire,
        entity.nested,
    )


def _value(fields: Fields, name: bytes) -> str:
    raw = fields.get(name)
    return guess(raw.strip()) if raw else ""


def _languages(fields: Fields) -> tuple[str, ...]:
    value = _value(fields, b"content-language")
    if not value:
        return ()
    tags = (tag.strip() for tag in value.split(",", 100)[:100])
    return tuple([tag for tag in tags if tag])


def _line_counts(octets: Octets, entities: Sequence[Entity]) -> list[int]:
    """Lines of each body, counting every octet once however deep the nesting."""
    if len(entities) == 1:
        start, end = entities[0].body_start, entities[0].body_end
        count = octets.count(b"\n", start, end)
        return [count + (end > start and octets[end - 1 : end] != b"\n")]
    places = sorted({p for e in entities for p in (e.body_start, e.body_end)})
    before = {places[0]: 0}
    total = 0
    for start, end in itertools.pairwise(places):
        total += octets.count(b"\n", start, end)
        before[end] = total
    return [
        before[e.body_end]
        - before[e.body_start]
        + (e.body_end > e.body_start and octets[e.body_end - 1 : e.body_end] != b"\n")
        for e in entities
    ]
