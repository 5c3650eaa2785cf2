"""Parse a message once, at arrival: everything that reading it later needs.

``parse`` walks the octets (``scanner``), renders what IMAP answers with
(``imap_wire``) and what JMAP lists show, and extracts the text for search.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.mail.charsets import decode_charset, guess
from mailserverd.mail.dates import parse_date
from mailserverd.mail.headers import as_text, jmap_addresses, message_ids
from mailserverd.mail.imap_wire import envelope, render_body, render_bodystructure
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
from mailserverd.mail.text import TextExtractor, header_lines
from mailserverd.mail.threads import base_subject, thread_keys
from mailserverd.mail.transfer import TransferDecoder, decode_transfer
from mailserverd.mail.words import unfold

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

    from mailserverd.mail.addrlist import Address
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
Addresses = dict[bytes, "list[Address]"]

_ADDRESS_PROPERTIES = (
    ("sender", b"sender"),
    ("from", b"from"),
    ("to", b"to"),
    ("cc", b"cc"),
    ("bcc", b"bcc"),
    ("replyTo", b"reply-to"),
)
_LIST_FIELDS = (b"list-id", b"list-post", b"list-unsubscribe", b"list-help")
_BULK = frozenset({b"bulk", b"list", b"junk"})


def parse(raw: bytes | mmap.mmap | memoryview) -> ParsedMessage:
    """Parse a message; never raises on its content.

    Memory: the message is not copied when it is bytes, or larger than 4 MiB;
    header blocks are read up to 512 KiB in all, text up to 1 MiB.
    """
    octets = open_octets(raw)
    found = scan(octets)
    root = found.entities[0]
    fields = root.last
    addresses: Addresses = {}
    wire = envelope(fields, addresses)
    parts = _parts(octets, found)
    bodies = split_bodies(parts)
    attached = has_attachment(parts, bodies)
    extractor = TextExtractor(octets, parts)
    summary = _summary(fields, addresses, attached, extractor.preview(bodies))
    base = base_subject(summary["subject"] or "")
    date = parse_date(fields[b"date"]) if b"date" in fields else None
    summary["sentAt"] = date.jmap() if date else None
    return ParsedMessage(
        size=len(octets),
        header_size=root.body_start,
        envelope=wire,
        bodystructure=render_bodystructure(parts),
        list_json=orjson.dumps(summary),
        part_table=dump_parts(parts),
        parts=parts,
        sent_at=date.epoch if date else None,
        message_id=(summary["messageId"] or [""])[0],
        thread_keys=_thread_keys(fields, base),
        base_subject=base,
        sort_from=_sort_key(summary["from"]),
        sort_to=_sort_key(summary["to"]),
        has_attachment=attached,
        search_headers=header_lines(fields),
        search_text=extractor.search_text(bodies),
        auto_generated=_auto_generated(fields),
        received_count=found.received,
    )


def _summary(
    fields: Fields, addresses: Addresses, attached: bool, preview: str
) -> dict[str, Any]:
    """The JMAP properties that lists show (RFC 8621 section 4.1)."""
    summary: dict[str, Any] = {
        "messageId": _ids(fields, b"message-id"),
        "inReplyTo": _ids(fields, b"in-reply-to"),
        "references": _ids(fields, b"references"),
    }
    for name, field in _ADDRESS_PROPERTIES:
        known = addresses.get(field)
        summary[name] = None if known is None else jmap_addresses(known)
    subject = fields.get(b"subject")
    summary["subject"] = None if subject is None else as_text(subject)
    summary["sentAt"] = None
    summary["hasAttachment"] = attached
    summary["preview"] = preview
    return summary


def _ids(fields: Fields, name: bytes) -> list[str] | None:
    raw = fields.get(name)
    return [guess(found) for found in message_ids(raw)] or None if raw else None


def _thread_keys(fields: Fields, base: str) -> tuple[bytes, ...]:
    ids: list[bytes] = []
    for name in (b"message-id", b"in-reply-to", b"references"):
        if raw := fields.get(name):
            ids += message_ids(raw)
    return thread_keys(ids, base)


def _sort_key(addresses: list[dict[str, str | None]] | None) -> str:
    """What RFC 5957 sorts by: the first display name, or the address."""
    if not addresses:
        return ""
    return (addresses[0]["name"] or addresses[0]["email"] or "").casefold()


def _auto_generated(fields: Fields) -> bool:
    """RFC 3834 section 2: nobody waits for an answer to this message."""
    submitted = fields.get(b"auto-submitted")
    if submitted is not None:
        word = unfold(submitted).partition(b";")[0].partition(b"(")[0]
        if word.strip().lower() != b"no":
            return True
    if any(name in fields for name in _LIST_FIELDS):
        return True
    return fields.get(b"precedence", b"").strip().lower() in _BULK


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
        wire = envelope(entity.children[0].last, {})
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
    return guess(unfold(raw).strip()) if raw else ""


def _languages(fields: Fields) -> tuple[str, ...]:
    value = _value(fields, b"content-language")
    if not value:
        return ()
    tags = (tag.strip() for tag in value.split(",", 100)[:100])
    return tuple([tag for tag in tags if tag])


def _line_counts(octets: Octets, entities: Sequence[Entity]) -> list[int]:
    """Lines of each body, counting every octet once however deep the nesting."""
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
