"""Octets behind a blob id: found by references, cut and decoded as the id says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.mail.transfer import TransferDecoder, decode_transfer, is_identity
from protocols.jmap.wire import ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mailserverd.core.types import Access
    from protocols.jmap.services import Services
    from storage.model import BlobRef


async def find(
    services: Services, access: Access, text: str
) -> tuple[BlobRef, ids.Blob]:
    """Return where the blob lies and which part is meant; NOT_FOUND."""
    blob = ids.parse_blob(text)
    if blob is None:
        raise _missing()
    ref = await services.messages.find_blob(access, blob.hash)
    if blob.steps and blob.steps[0][1] > ref.size:
        raise _missing()
    return ref, blob


def _missing() -> MailError:
    return MailError(Kind.NOT_FOUND, "no such blob")


def extent(ref: BlobRef, blob: ids.Blob) -> tuple[int, int] | None:
    """Return the range of stored octets that is the content; None if encoded."""
    if not blob.steps:
        return 0, ref.size
    start, end, encoding = blob.steps[0]
    plain = len(blob.steps) == 1 and is_identity(encoding)
    return (start, end) if plain else None


async def stream(
    services: Services, ref: BlobRef, blob: ids.Blob
) -> AsyncIterator[bytes]:
    """Yield the content in pieces; NOT_FOUND when the id names a range beyond it."""
    if len(blob.steps) > 1:
        yield await read(services, ref, blob)
        return
    start, end, encoding = blob.steps[0] if blob.steps else (0, ref.size, ids.PLAIN)
    decoder = TransferDecoder(encoding)
    async for chunk in services.messages.stream_blob(ref, start, end):
        if piece := decoder.feed(chunk):
            yield piece
    if last := decoder.finish():
        yield last


async def read(services: Services, ref: BlobRef, blob: ids.Blob) -> bytes:
    """Return the whole content; TOO_LARGE beyond the largest message."""
    start, end, _ = blob.steps[0] if blob.steps else (0, ref.size, "")
    if end - start > services.settings.limits.max_size_message:
        raise MailError(Kind.TOO_LARGE, "the blob is too large for this")
    raw: bytes = await services.messages.read_blob(ref, start, end)
    if not blob.steps:
        return raw
    if len(blob.steps) == 1 and is_identity(blob.steps[0][2]):
        return raw
    return await services.offload(_undo, raw, blob.steps)


def _undo(raw: bytes, steps: tuple[ids.Step, ...]) -> bytes:
    data, _ = decode_transfer(raw, steps[0][2])
    for start, end, encoding in steps[1:]:
        if end > len(data):
            raise _missing()
        data, _ = decode_transfer(data[start:end], encoding)
    return data
