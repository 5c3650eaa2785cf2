"""What leaves of a queued message: its octets and what they need of the next server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.types import BodyType, Envelope, Recipient
from mailserverd.services import trace
from mailserverd.services.relay import Outbound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mailserverd.services.receive import Kernel
    from storage.model import BlobRef
    from storage.queue import Claim, Entry

WHOLE = 1 << 20  # octets: smaller messages are read once
HEADER = 64 * 1024  # octets looked at first to find the header


async def read_outbound(claim: Claim, kernel: Kernel) -> Outbound:
    """Return a claimed message as it is to be sent; UNAVAILABLE.

    Our Return-Path stays behind (RFC 5321 section 4.4).
    """
    blob = claim.message.blob
    whole = await kernel.blobs.read(blob) if blob.size <= WHOLE else b""
    header = _header(whole) if whole else await read_header(blob, kernel)
    skip = trace.without_return_path(header)
    eight_bit = not (whole.isascii() if whole else await _is_ascii(blob, kernel))
    return Outbound(
        envelope=_envelope(
            claim, header_is_ascii=header.isascii(), eight_bit=eight_bit
        ),
        size=blob.size - skip,
        eight_bit=eight_bit,
        content=_content(blob, kernel, whole, skip),
    )


async def read_header(blob: BlobRef, kernel: Kernel) -> bytes:
    """Return the header block of a stored message, at most MAX_HEADER of it."""
    start = await kernel.blobs.read(blob, 0, min(HEADER, blob.size))
    end = trace.header_end(start)
    if end < len(start) or len(start) == blob.size:
        return start[:end]
    return _header(await kernel.blobs.read(blob, 0, min(trace.MAX_HEADER, blob.size)))


async def read_reported(entry: Entry, kernel: Kernel) -> bytes:
    """Return as much of a message as a report may hold."""
    blob = entry.message.blob
    if blob.size <= WHOLE:
        return await kernel.blobs.read(blob)
    return await read_header(blob, kernel)


def _header(data: bytes) -> bytes:
    return data[: trace.header_end(data)]


async def _is_ascii(blob: BlobRef, kernel: Kernel) -> bool:
    async for chunk in kernel.blobs.stream(blob):
        if not chunk.isascii():
            return False
    return True


def _content(
    blob: BlobRef, kernel: Kernel, whole: bytes, skip: int
) -> Callable[[], AsyncIterator[bytes]]:
    async def from_memory() -> AsyncIterator[bytes]:
        yield whole[skip:]

    def from_store() -> AsyncIterator[bytes]:
        return kernel.blobs.stream(blob, skip)

    return from_memory if whole else from_store


def _envelope(claim: Claim, *, header_is_ascii: bool, eight_bit: bool) -> Envelope:
    """Ask for SMTPUTF8 only where an address or the header needs it (RFC 6531)."""
    queued = claim.message
    addresses = [queued.reverse_path, *(r.address for r in claim.recipients)]
    needed = not all(address.isascii() for address in addresses)
    return Envelope(
        reverse_path=queued.reverse_path,
        recipients=tuple(
            Recipient(r.address, r.notify, r.orcpt) for r in claim.recipients
        ),
        smtputf8=needed or (queued.smtputf8 and not header_is_ascii),
        body=BodyType.EIGHT_BIT if eight_bit else BodyType.SEVEN_BIT,
        ret=queued.ret,
        envid=queued.envid,
    )
