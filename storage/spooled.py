"""Messages that lie in a file, as payloads of a segment: what blob engines share."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, BinaryIO

from mailserverd.core.errors import Kind, MailError
from storage.segments import RAW, Payload

if TYPE_CHECKING:
    from collections.abc import Iterator

_COPY = 1 << 20  # octets read at once


def read_all(file: BinaryIO, size: int) -> bytes:
    """Return the first ``size`` octets; INTERNAL when there are fewer."""
    file.seek(0)
    data = file.read(size)
    if len(data) != size:
        raise MailError(Kind.INTERNAL, "file is shorter than its size")
    return data


class _Chunks:
    """The first ``size`` octets of a file, read again each time they are needed."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        left = self._size
        while left:
            chunk = self._file.read(min(_COPY, left))
            if not chunk:
                raise MailError(Kind.INTERNAL, "file is shorter than its size")
            left -= len(chunk)
            yield chunk


def prepare_file(file: BinaryIO, size: int) -> Payload:
    """Hash ``size`` octets without holding them in memory; INTERNAL when there are
    fewer."""
    chunks, hasher, crc = _Chunks(file, size), hashlib.sha256(), 0
    for chunk in chunks:
        hasher.update(chunk)
        crc = zlib.crc32(chunk, crc)
    return Payload(chunks, size, size, hasher.digest(), RAW, crc)
