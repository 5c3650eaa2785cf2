"""Header fields, tag lists and DKIM canonicalisation (RFC 6376 sections 3.2 and 3.4).

Everything works on whole byte strings (replace, find, split): no loop per line.  Bodies
are taken in pieces of a megabyte, so a large message costs no second copy of itself.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator
    from typing import TypeAlias

    # a message, wherever it is
    Octets: TypeAlias = "bytes | memoryview | mmap.mmap | Joined"

PIECE = 1 << 20
LINE_SEARCH = 1 << 16
MAX_HEADER = 512 << 10  # octets
MAX_TAGS = 64

_FIELD_END = re.compile(rb"\r\n(?![ \t])")
_TAG_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_]*")
_ODD_SPACE = re.compile(rb"[\x0b\x0c]|\r(?!\n)|(?<!\r)\n")
_WSP_RUN = re.compile(rb"(?:(?:\r\n)?[ \t])+")
WSP = b" \t\r\n"


class Joined:
    """A message whose header is in memory, and its body behind that of another."""

    def __init__(self, header: bytes, source: bytes | mmap.mmap, start: int) -> None:
        self.header = header
        self.source = source
        self.start = start  # of the body in ``source``

    def __len__(self) -> int:
        return len(self.header) + len(self.source) - self.start

    def __getitem__(self, part: slice) -> bytes:
        """Return octets; only slices without a step, and none from the end."""
        first, last, _ = part.indices(len(self))
        shift = self.start - len(self.header)
        body = self.source[max(first + shift, self.start) : max(last + shift, 0)]
        return self.header[first:last] + body


class Header(NamedTuple):
    """The header section of a message, split once.

    ``fields`` are raw without their final CRLF, in order; ``names`` maps lower-case
    field names to ascending indexes; the body starts at octet ``body_start``.
    """

    fields: list[bytes]
    names: dict[bytes, list[int]]
    body_start: int


def split_header(message: Octets) -> Header:
    """Split the header section; lines that are no field have the name ``b""``.

    Of a section larger than MAX_HEADER the rest is not looked at, and there is no
    body: ``body_start`` is the size of the message.
    """
    block, body_start = _header_block(message)
    fields = _FIELD_END.split(block) if block else []
    names: dict[bytes, list[int]] = {}
    for index, field in enumerate(fields):
        name = field[: max(field.find(b":"), 0)].rstrip(WSP).lower()
        names.setdefault(name, []).append(index)
    return Header(fields, names, body_start)


def _header_block(message: Octets) -> tuple[bytes, int]:
    for size in (LINE_SEARCH, MAX_HEADER):
        head = bytes(message[:size])
        if head.startswith(b"\r\n"):
            return b"", 2
        end = head.find(b"\r\n\r\n")
        if end >= 0:
            return head[:end], end + 4
        if size >= len(message):
            break
    return head.removesuffix(b"\r\n"), len(message)


def parse_tags(text: bytes) -> dict[bytes, bytes] | None:
    """Parse ``a=1; b=2`` (RFC 6376 section 3.2); None when it is no tag list.

    Values keep the folding white space inside, not around.
    """
    tags: dict[bytes, bytes] = {}
    parts = text.split(b";", MAX_TAGS + 1)
    if len(parts) > MAX_TAGS:
        return None
    for part in parts:
        name, equals, value = part.partition(b"=")
        name = name.strip(WSP)
        if not name and not equals:
            continue
        if not equals or not _TAG_NAME.fullmatch(name) or name in tags:
            return None
        tags[name] = value.strip(WSP)
    return tags


def without_signature(field: bytes) -> bytes:
    """Return a signature field with the value of its b= tag deleted (section 3.7)."""
    parts = field.split(b";")
    for index, part in enumerate(parts):
        start = part.find(b":") + 1 if index == 0 else 0
        name, equals, _ = part[start:].partition(b"=")
        if equals and name.strip(WSP) == b"b":
            parts[index] = part[:start] + name + b"="
            break
    return b";".join(parts)


def relax_field(field: bytes) -> bytes:
    """Canonicalise one field, without final CRLF (section 3.4.2)."""
    name, _, value = field.partition(b":")
    if _ODD_SPACE.search(value):  # bytes.split takes these for space, the RFC does not
        value = _WSP_RUN.sub(b" ", value).strip(b" ")
    else:
        value = b" ".join(value.split())
    return name.rstrip(WSP).lower() + b":" + value


def body_hash(message: Octets, start: int, *, relaxed: bool) -> tuple[bytes, int]:
    """Return (SHA-256, octets) of the canonical body (sections 3.4.3 and 3.4.4)."""
    digest = hashlib.sha256()
    length = held = 0  # octets hashed; line ends that count only if text follows
    for piece in _pieces(message, start):
        text = _relax(piece) if relaxed else piece
        kept = _without_final_line_ends(text)
        if kept:
            length += len(kept) + 2 * held
            while held:
                count = min(held, PIECE)
                digest.update(b"\r\n" * count)
                held -= count
            digest.update(kept)
        held += (len(text) - len(kept)) // 2
    if length or not relaxed:
        digest.update(b"\r\n")
        length += 2
    return digest.digest(), length


def _pieces(message: Octets, start: int) -> Iterator[bytes]:
    """Yield the body in pieces that end where a line does."""
    size = len(message)
    while start < size:
        end = min(start + PIECE, size)
        while end < size:
            found = bytes(message[end - 1 : end + LINE_SEARCH]).find(b"\n")
            if found >= 0:
                end += found
                break
            end = min(end + LINE_SEARCH, size)
        yield bytes(message[start:end])
        start = end


def _relax(text: bytes) -> bytes:
    text = text.replace(b"\t", b" ")
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text.replace(b" \r\n", b"\r\n").removesuffix(b" ")


def _without_final_line_ends(text: bytes) -> bytes:
    """Remove trailing CRLF pairs, and no bare CR or LF, in time linear to them."""
    kept = text.rstrip(b"\r\n")
    tail = text[len(kept) :]
    if tail == b"\r\n" * (len(tail) // 2):
        return kept
    if tail.endswith(b"\r"):
        return text
    lf, cr = tail.rfind(b"\n\n"), tail.rfind(b"\r\r")
    bare = max(tail.startswith(b"\n"), lf + 2 if lf >= 0 else 0, cr + 1)
    return kept + tail[:bare]
