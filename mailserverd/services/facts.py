"""What is stored beside a message: read once, from its final octets."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

import zstandard

from mailserverd.mail import mime
from storage.metadata.deliver import octets
from storage.model import NewEmail

if TYPE_CHECKING:
    import mmap

    from mailserverd.core.ports import Offload
    from mailserverd.mail.model import ParsedMessage
    from storage.model import BlobRef

OFFLOAD_ABOVE = 256 * 1024  # octets: reading more may take over 2 ms
LEVEL = 1  # of zstd: a third of level 3's time for a few percent more octets
_LOCAL = threading.local()


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """A parsed message and its text for search, compressed."""

    parsed: ParsedMessage
    search_text: bytes

    def email(self, blob: BlobRef) -> NewEmail:
        """Return what the message's row holds."""
        parsed = self.parsed
        return NewEmail(
            blob=blob,
            size=parsed.size,
            header_size=parsed.header_size,
            sent_at=parsed.sent_at,
            envelope=parsed.envelope,
            bodystructure=parsed.bodystructure,
            list_json=parsed.list_json,
            part_table=parsed.part_table,
            thread_keys=parsed.thread_keys,
            message_id=parsed.message_id,
            base_subject=parsed.base_subject,
            sort_from=parsed.sort_from,
            sort_to=parsed.sort_to,
            has_attachment=parsed.has_attachment,
            search_headers=b"",  # they are in the text
            search_text=self.search_text,
        )


async def read_facts(raw: bytes | mmap.mmap, offload: Offload) -> Facts:
    """Parse a message; off the loop when that takes long."""
    if len(raw) > OFFLOAD_ABOVE:
        return await offload(_read, raw)
    return _read(raw)


def _read(raw: bytes | mmap.mmap) -> Facts:
    parsed = mime.parse(raw)
    text = octets(parsed.search_headers) + b"\0" + octets(parsed.search_text)
    return Facts(parsed, _compressor().compress(text))


def _compressor() -> zstandard.ZstdCompressor:
    """One per thread: they are not to be shared."""
    found: zstandard.ZstdCompressor | None = getattr(_LOCAL, "compressor", None)
    if found is None:
        found = _LOCAL.compressor = zstandard.ZstdCompressor(level=LEVEL)
    return found
