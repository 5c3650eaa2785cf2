"""Body sections: what ``BODY[1.HEADER.FIELDS (From)]<0.100>`` names in a message.

A section becomes an extent of octets of the stored message, found through the part
table; header field lists are cut out of a header block, BINARY decodes on the way.
RFC 9051 section 6.4.5.1, RFC 3516.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from mailserverd.mail.mime import (
    TransferDecoder,
    decode_transfer,
    enclosed_root,
    find_part,
    load_parts,
)
from protocols.imap.wire import encode
from protocols.imap.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.mail.model import Part
    from protocols.imap.wire.cursor import Cursor
    from storage.model import BlobRef

_PART = re.compile(r"[1-9][0-9]{0,5}(?:\.[1-9][0-9]{0,5}){0,99}")
_FIELD = re.compile(rb"^([!-9;-~]+)[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*\n?", re.MULTILINE)
_TEXTS = ("HEADER.FIELDS.NOT", "HEADER.FIELDS", "HEADER", "TEXT", "MIME", "")
_WITHOUT_PARTS = ("blob", "size", "header_size")
_WITH_PARTS = (*_WITHOUT_PARTS, "part_table")
MAX_PATTERN_FIELDS = 64
MAX_HEADER = 1 << 20  # octets of a header block that field lists are cut from
IDENTITY = frozenset({"", "7bit", "8bit", "binary"})
_KNOWN_ENCODINGS = IDENTITY | {"base64", "quoted-printable"}


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """One body item of FETCH; ``label`` is how the response names it."""

    label: bytes
    part: str = ""  # "1.2", or "" for the message
    text: str = ""  # HEADER, HEADER.FIELDS, HEADER.FIELDS.NOT, TEXT, MIME, or all
    fields: frozenset[bytes] = frozenset()  # lower case
    partial: tuple[int, int] | None = None  # first octet, how many
    peek: bool = False
    decode: bool = False  # BINARY
    size_only: bool = False  # BINARY.SIZE

    @property
    def source_fields(self) -> tuple[str, ...]:
        """What must be read of a message to find the extent."""
        return _WITH_PARTS if self.part else _WITHOUT_PARTS


class Source(NamedTuple):
    """Where a message lies and what is known of its structure."""

    blob: BlobRef
    size: int
    header_size: int
    part_table: bytes


class Extent(NamedTuple):
    """Octets of the message, half-open; ``encoding`` is to be undone by BINARY."""

    start: int
    end: int
    encoding: str = ""


OLD_ITEMS = {
    "RFC822": Section(b"RFC822"),
    "RFC822.HEADER": Section(b"RFC822.HEADER", text="HEADER", peek=True),
    "RFC822.TEXT": Section(b"RFC822.TEXT", text="TEXT"),
}
"""Items of RFC 3501 section 6.4.5 that IMAP4rev2 left out."""
BODY_ITEMS = frozenset({"BODY", "BODY.PEEK", "BINARY", "BINARY.PEEK", "BINARY.SIZE"})


def parse(name: str, args: Cursor) -> Section:
    """Parse what follows the name of a body item, from ``[`` on."""
    args.expect(b"[")
    binary = name.startswith("BINARY")
    spec = "" if args.next_is(b"]") else args.word()
    part, text = _split(spec)
    if binary and text:
        raise WireError("BINARY takes a part number")
    names: list[bytes] = []
    if text.startswith("HEADER.FIELDS"):
        args.space()
        names = args.group(args.astring)
    args.expect(b"]")
    size_only = name == "BINARY.SIZE"
    partial = _partial(args) if args.next_is(b"<") and not size_only else None
    return Section(
        _label(name, spec, names, partial),
        part,
        text,
        frozenset(field.lower() for field in names),
        partial,
        peek=name.endswith((".PEEK", ".SIZE")),
        decode=binary,
        size_only=size_only,
    )


def _split(spec: str) -> tuple[str, str]:
    """Split ``1.2.HEADER`` into its part number and its text."""
    for text in _TEXTS:
        if not spec.endswith(text):
            continue
        part = spec.removesuffix(text)
        if text and part.endswith("."):
            part = part[:-1]
        elif text and part:
            break
        if part and not _PART.fullmatch(part):
            break
        if text == "MIME" and not part:
            break
        return part, text
    raise WireError("invalid body section")


def _partial(args: Cursor) -> tuple[int, int]:
    args.expect(b"<")
    first = args.number()
    args.expect(b".")
    count = args.nz_number()
    args.expect(b">")
    return first, count


def _label(
    name: str, spec: str, names: Sequence[bytes], partial: tuple[int, int] | None
) -> bytes:
    label = name.removesuffix(".PEEK") + "[" + spec
    wire = label.encode("ascii")
    if names:
        wire += b" (" + b" ".join(encode.astring(field) for field in names) + b")"
    wire += b"]"
    return wire + b"<%d>" % partial[0] if partial else wire


_parts = functools.lru_cache(maxsize=16)(load_parts)  # one message, many sections


# --- locating -----------------------------------------------------------------


def locate(section: Section, source: Source) -> Extent | None:
    """Return where a section lies; None when the message has no such part."""
    if not section.part:
        return _of_message(section, source)
    parts = _parts(source.part_table)
    part = find_part(parts, section.part)
    if part is None:
        return None
    if section.text == "MIME":
        return Extent(part.header_start, part.body_start)
    if section.text:
        return _of_enclosed(section, enclosed_root(parts, part))
    leaf = part.type not in {"multipart", "message"}
    encoding = part.encoding if section.decode and leaf else ""
    return Extent(part.body_start, part.body_end, encoding)


def _of_message(section: Section, source: Source) -> Extent:
    if section.text == "TEXT":
        return Extent(source.header_size, source.size)
    return Extent(0, source.header_size if section.text else source.size)


def _of_enclosed(section: Section, root: Part | None) -> Extent | None:
    """``1.HEADER`` and ``1.TEXT`` mean the message that part 1 encloses."""
    if root is None:
        return None
    if section.text == "TEXT":
        return Extent(root.body_start, root.body_end)
    return Extent(root.header_start, root.body_start)


def decodable(encoding: str) -> bool:
    """Say whether BINARY can undo a transfer encoding (else ``UNKNOWN-CTE``)."""
    return encoding in _KNOWN_ENCODINGS


def decoder(encoding: str) -> TransferDecoder | None:
    """Return what undoes an encoding in chunks; None when there is nothing to."""
    return None if encoding in IDENTITY else TransferDecoder(encoding)


def decode(raw: bytes, encoding: str) -> bytes:
    """Undo an encoding; what is damaged is decoded as far as possible."""
    return decode_transfer(raw, encoding)[0]


def cut(extent: Extent, partial: tuple[int, int] | None) -> Extent:
    """Return the extent that ``<first.count>`` leaves of one."""
    if partial is None:
        return extent
    start = min(extent.start + partial[0], extent.end)
    return extent._replace(start=start, end=min(start + partial[1], extent.end))


@functools.lru_cache(maxsize=256)
def _pattern(names: frozenset[bytes]) -> re.Pattern[bytes]:
    """Return what finds whole fields of these names: a client's list is a constant."""
    choice = b"|".join(re.escape(name) for name in sorted(names))
    return re.compile(
        rb"^(?:%b)[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*\n?" % choice,
        re.MULTILINE | re.IGNORECASE,
    )


def pick_fields(block: bytes, section: Section) -> bytes:
    """Return the fields that a list names (or leaves), and the blank line."""
    wanted, negate = section.fields, section.text.endswith("NOT")
    if not negate and len(wanted) <= MAX_PATTERN_FIELDS:
        return b"".join([*_pattern(wanted).findall(block), b"\r\n"])
    found = [
        match[0]
        for match in _FIELD.finditer(block)
        if (match[1].lower() in wanted) is not negate
    ]
    found.append(b"\r\n")
    return b"".join(found)
