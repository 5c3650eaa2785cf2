"""Body sections of one message: read, cut, decoded, streamed with back-pressure.

Small sections are read whole; large ones are read and written in chunks, and so is
what BINARY decodes.  Everything that can fail cheaply fails before a literal is
announced; after that the only honest way out is to drop the connection.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from protocols.imap import sections
from protocols.imap.replies import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from protocols.imap.extension import Context
    from protocols.imap.sections import Extent, Section, Source

SMALL = 128 * 1024  # octets that are read at once


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """A literal that is read while it is sent: ``size`` octets from ``skip`` on."""

    extent: Extent
    size: int
    prefix: bytes = b""  # "~" for literal8
    skip: int = 0


async def prepare(context: Context, section: Section, source: Source) -> bytes | Stream:
    """Return a complete value, or how to stream it; nothing is sent yet."""
    extent = sections.locate(section, source)
    if extent is None:
        return b"0" if section.size_only else b"NIL"
    if section.decode:
        return await _decoded(context, section, extent, source)
    if section.fields:
        top = min(extent.end, extent.start + sections.MAX_HEADER)
        block = await _read(context, source, extent.start, top)
        return _literal(_slice(sections.pick_fields(block, section), section))
    if section.partial is not None:
        extent = sections.cut(extent, section.partial)
    if extent.end - extent.start <= SMALL:
        return _literal(await _read(context, source, extent.start, extent.end))
    await _read(context, source, extent.start, extent.start + 1)  # is it there?
    return Stream(extent, extent.end - extent.start)


async def send(context: Context, piece: bytes | Stream, source: Source) -> None:
    """Send what ``prepare`` returned."""
    if isinstance(piece, bytes):
        context.send(piece)
        return
    context.send(b"%b{%d}\r\n" % (piece.prefix, piece.size))
    try:
        left = await _copy(context, piece, source)
    except MailError:
        context.channel.transport.abort()  # the size is announced already
        raise
    if left:
        context.channel.transport.abort()
        raise MailError(Kind.UNAVAILABLE, "message is damaged")


async def _decoded(
    context: Context, section: Section, extent: Extent, source: Source
) -> bytes | Stream:
    """BINARY: the octets behind the transfer encoding (RFC 3516 section 4)."""
    if not sections.decodable(extent.encoding):
        raise Refused("UNKNOWN-CTE", "cannot decode this part")
    if section.size_only:
        return b"%d" % await _decoded_size(context, extent, source)
    if extent.encoding in sections.IDENTITY:
        extent = sections.cut(extent, section.partial)
        section = dataclasses.replace(section, partial=None)
    if extent.end - extent.start <= SMALL:
        raw = await _read(context, source, extent.start, extent.end)
        return _literal8(_slice(sections.decode(raw, extent.encoding), section))
    size = await _decoded_size(context, extent, source)
    first, count = section.partial or (0, size)
    first = min(first, size)
    return Stream(extent, min(count, size - first), prefix=b"~", skip=first)


async def _decoded_size(context: Context, extent: Extent, source: Source) -> int:
    """Decode once to know the size: a literal announces it."""
    if extent.encoding in sections.IDENTITY:
        return extent.end - extent.start
    size = 0
    async for chunk in _chunks(context, extent, source):
        size += len(chunk)
    return size


async def _read(context: Context, source: Source, start: int, end: int) -> bytes:
    if start >= end:
        return b""
    data = await context.services.messages.read_blob(source.blob, start, end)
    if len(data) != end - start:
        raise MailError(Kind.UNAVAILABLE, "message is damaged")
    return data


async def _copy(context: Context, piece: Stream, source: Source) -> int:
    """Send the octets; return how many are missing."""
    left, skip = piece.size, piece.skip
    async for chunk in _chunks(context, piece.extent, source):
        data = chunk[skip : skip + left]
        skip = max(0, skip - len(chunk))
        if data:
            left -= len(data)
            context.send(data)
            await context.channel.drain()
        if not left:
            break
    return left


async def _chunks(
    context: Context, extent: Extent, source: Source
) -> AsyncIterator[bytes]:
    """Yield the octets of an extent, decoded if it says so, up to 256 KiB each."""
    decoder = sections.decoder(extent.encoding)
    stream = context.services.messages.stream_blob(
        source.blob, extent.start, extent.end
    )
    async for chunk in stream:
        yield decoder.feed(chunk) if decoder else chunk
    if decoder:
        yield decoder.finish()


def _slice(data: bytes, section: Section) -> bytes:
    if section.partial is None:
        return data
    first, count = section.partial
    return data[first : first + count]


def _literal(data: bytes) -> bytes:
    return b"{%d}\r\n%b" % (len(data), data)


def _literal8(data: bytes) -> bytes:
    """A literal8 only where NUL demands it: not every client knows it."""
    return b"~" + _literal(data) if b"\0" in data else _literal(data)
