"""What a crash left behind, put right when the store opens.

Only ``.open`` segments are looked at: those that were being written.  Nothing that
was acknowledged is ever removed: a torn tail is cut behind the last valid record,
and a segment is removed only when it holds no valid record at all.
"""

from __future__ import annotations

import dataclasses
import os

from mailserverd.core.log import get_logger
from storage.blobs.file.appender import Appender, Segment
from storage.blobs.file.layout import GONE, OPEN, SEALED, Layout
from storage.segments import (
    FILE_HEADER,
    RECORD_HEADER,
    Damage,
    ReadAt,
    SegmentError,
    decode_file_header,
    decode_header,
    footer_entry,
    read_footer,
    scan,
)

log = get_logger("blobs")


@dataclasses.dataclass(slots=True)
class Survey:
    """What an unsealed segment holds; records are appended or the footer put at
    ``end``."""

    end: int = FILE_HEADER
    entries: bytearray = dataclasses.field(default_factory=bytearray)
    damaged: list[Damage] = dataclasses.field(default_factory=list)
    torn: Damage | None = None


def recover(layout: Layout, appender: Appender, segment_size: int) -> None:
    """Recover every segment that no living process writes; continue the newest."""
    with layout.allocation():
        layout.raise_floor()
        numbers = layout.numbers()
        unsealed = [n for n, suffix in numbers.items() if suffix == OPEN]
        for number in unsealed:
            fd = layout.claim(number)
            if fd >= 0:
                _recover(layout, appender, number, fd)
        active = appender.active
        if active and active.end >= segment_size:
            appender.seal_active()
    for number in (n for n, suffix in numbers.items() if suffix == GONE):
        give_back(layout, number, step=0)


def _recover(layout: Layout, appender: Appender, number: int, fd: int) -> None:
    files = layout.files
    size = files.size(fd)

    def read_at(offset: int, length: int) -> bytes:
        return files.read(fd, length, offset)

    if _is_sealed(read_at, size):
        files.sync(fd)  # whoever wrote the footer may have died before that
        files.close(fd)
        files.rename(layout.path(number, OPEN), layout.path(number, SEALED))
        return
    found = survey(read_at, size, layout.store)
    whole = _has_header(read_at)
    if not found.entries and not (whole and size == FILE_HEADER):
        log.info("segment-empty", segment=number, size=size)
        files.close(fd)
        files.remove(layout.path(number, OPEN))
        return
    if found.torn:
        log.info("torn-tail-cut", segment=number, at=found.end, size=size)
        files.truncate(fd, found.end)
    files.sync(fd)
    appender.seal_active()
    appender.active = Segment(number, fd, found.end, found.entries)
    if found.damaged or not whole:
        log.error("segment-damaged", segment=number, where=str(found.damaged[:3]))
        appender.seal_active()


def survey(read_at: ReadAt, size: int, store: bytes) -> Survey:
    """Scan an unsealed segment of ``size`` octets."""
    found = Survey()
    for item in scan(read_at, size, store):
        if not isinstance(item, Damage):
            found.end = item.end
            found.entries += footer_entry(item.ref)
        elif item.end == size and not _is_complete(read_at, item):
            found.torn = item
        else:
            found.end = item.end
            found.damaged.append(item)
    return found


def _is_complete(read_at: ReadAt, damage: Damage) -> bool:
    """True for a whole record with a wrong checksum: perhaps decayed, not torn."""
    try:
        record = decode_header(read_at(damage.offset, RECORD_HEADER))
    except SegmentError:
        return False
    return damage.offset + RECORD_HEADER + record.length <= damage.end


def _is_sealed(read_at: ReadAt, size: int) -> bool:
    try:
        read_footer(read_at, size)
    except SegmentError:
        return False
    return True


def _has_header(read_at: ReadAt) -> bool:
    try:
        decode_file_header(read_at(0, FILE_HEADER))
    except SegmentError:
        return False
    return True


def give_back(layout: Layout, number: int, step: int) -> bool:
    """Cut ``step`` octets (0: all) off a removed segment; True when it is no more.

    Removing a large file at once stalls every sync of the file system.
    """
    path = layout.path(number, GONE)
    try:
        left = os.path.getsize(path) - step if step else 0
        if left > 0:
            os.truncate(path, left)
            return False
        os.truncate(path, 0)  # other processes may have it open for a while
        layout.files.remove(path)
    except FileNotFoundError:
        pass
    return True
