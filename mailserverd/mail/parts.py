"""The part table: kept beside the row, so that no read path parses MIME."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from mailserverd.mail.model import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FORMAT = 1
# A row leaves out its trailing values when they are these.
_DEFAULTS = ("", "", (), "", "", (), (), "", "", "", "", False)
_FIXED = 7  # values that every row has


def dump_parts(parts: Iterable[Part]) -> bytes:
    """Encode the table compactly: JSON rows without trailing default values."""
    return orjson.dumps([_FORMAT, *[_row(part) for part in parts]])


def _row(part: Part) -> list[Any]:
    row: list[Any] = [
        part.parent,
        part.header_start,
        part.body_start,
        part.body_end,
        part.lines,
        part.type,
        part.subtype,
        part.section,
        part.encoding,
        part.params,
        part.disposition,
        part.content_id,
        part.disposition_params,
        part.language,
        part.description,
        part.location,
        part.md5,
        part.envelope.decode("latin-1"),
        part.nested,
    ]
    while row and len(row) > _FIXED and not row[-1]:
        row.pop()
    return row


def load_parts(table: bytes) -> tuple[Part, ...]:
    """Decode ``dump_parts``; ValueError for anything else."""
    rows = orjson.loads(table)
    if not isinstance(rows, list) or not rows or rows[0] != _FORMAT:
        raise ValueError("unknown part table format")
    return tuple([_part(row) for row in rows[1:]])


def _part(row: list[Any]) -> Part:
    values = (*row, *_DEFAULTS[len(row) - _FIXED :])
    return Part(
        section=values[7],
        parent=values[0],
        type=values[5],
        subtype=values[6],
        params=tuple([(name, value) for name, value in values[9]]),
        encoding=values[8],
        disposition=values[10],
        disposition_params=tuple([(name, value) for name, value in values[12]]),
        content_id=values[11],
        description=values[14],
        language=tuple(values[13]),
        location=values[15],
        md5=values[16],
        header_start=values[1],
        body_start=values[2],
        body_end=values[3],
        lines=values[4],
        envelope=values[17].encode("latin-1"),
        nested=values[18],
    )


def find_part(parts: Sequence[Part], section: str) -> Part | None:
    """Return the part that an IMAP section number names (RFC 9051 section 6.4.5.1).

    "" is the message itself, "1" of a message without multipart is that message's
    body; numbers go on into message/rfc822 parts.  None when there is no such part.
    """
    if section == "":
        return parts[0]
    for part in parts:
        if part.section == section and not (part.nested and part.type == "multipart"):
            return part
    if section == "1" and parts[0].type != "multipart":
        return parts[0]
    return None


def part_id(part: Part) -> str:
    """Return the JMAP partId (RFC 8621 section 4.1.4); the root leaf is "1"."""
    return part.section or "1"


def enclosed_root(parts: Sequence[Part], part: Part) -> Part | None:
    """Return the message enclosed in a message/rfc822 part, None if not walked into.

    Its header block is what ``BODY[n.HEADER]`` reads, its body ``BODY[n.TEXT]``.
    """
    index = parts.index(part)
    return next((p for p in parts[index + 1 :] if p.nested and p.parent == index), None)
