"""The names of objects, and the store's identity.

::

    PREFIX/store                    "mailserverd-blobs 1 UUID"
    PREFIX/segments/NUMBER.seg      one sealed segment; NUMBER in 16 hex digits

A number is made without asking anybody: 42 bits of time in milliseconds, then 21
random bits.  Should two writers ever take the same, the second finds the object
there and takes another.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from storage.blobs.s3.errors import (
    EXISTS,
    MISSING,
    NO_BUCKET,
    NO_CREDENTIALS,
    SILENT,
    UNREACHABLE,
    BucketError,
)
from storage.report import SegmentInfo
from storage.segments import FILE_HEADER, SegmentError, decode_file_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from storage.blobs.s3.bucket import Bucket

SEGMENTS = "segments/"
_SUFFIX = ".seg"
_STORE = "store"
_RANDOM = 21  # bits
LIMIT = 1 << 63


def key_of(segment: int) -> str:
    """Return the object's key, below the prefix."""
    return f"{SEGMENTS}{segment:016x}{_SUFFIX}"


def number_of(key: str) -> int | None:
    """Return the segment that a key names; None when it names none."""
    stem = key.removeprefix(SEGMENTS).removesuffix(_SUFFIX)
    if key != f"{SEGMENTS}{stem}{_SUFFIX}" or len(stem) != 16:
        return None
    try:
        number = int(stem, 16)
    except ValueError:
        return None
    return number if number < LIMIT and key == key_of(number) else None


def made_at(segment: int) -> float:
    """Return when its writer numbered a segment, in seconds since the epoch."""
    return (segment >> _RANDOM) / 1000


class Numbers:
    """Makes segment numbers; each greater than the one before."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        """Return a number below 2 ** 63 that nobody else makes, in all likelihood."""
        with self._lock:
            time = int(self._now() * 1000) << _RANDOM
            number = max(time, self._last + 1) | secrets.randbits(_RANDOM)
            while number <= self._last:
                number += 1 << _RANDOM
            self._last = number
            return number


def listed(bucket: Bucket) -> Iterator[SegmentInfo]:
    """Yield all segments in the order of their numbers.

    One is as young as the younger of two clocks says, its writer's and the
    service's: neither being slow makes a new segment look old.
    """
    for found in bucket.list(SEGMENTS):
        number = number_of(found.key)
        if number is not None:
            modified = max(found.modified, made_at(number))
            yield SegmentInfo(number, True, found.octets, modified)


def identity(bucket: Bucket) -> bytes:
    """Return the store's UUID, making one when the prefix is empty.

    UNAVAILABLE, with what would be right, when the bucket cannot be used.
    """
    try:
        return _read(bucket) or _of_segments(bucket) or _make(bucket)
    except BucketError as e:
        raise advice(bucket, e) from e


def _read(bucket: Bucket) -> bytes:
    try:
        text = bucket.get_small(_STORE)
    except BucketError as e:
        if e.code == MISSING:
            return b""
        raise
    words = text.decode(errors="replace").split()
    try:
        if words[:2] == ["mailserverd-blobs", "1"]:
            return uuid.UUID(words[2]).bytes
    except (IndexError, ValueError):
        pass
    raise MailError(
        Kind.UNAVAILABLE, f"blobs: {bucket.options.place} has an unknown format"
    )


def _of_segments(bucket: Bucket) -> bytes:
    """Return the id that the segments bear, should the ``store`` object be lost."""
    some = False
    for info in listed(bucket):
        some = True
        try:
            head = bucket.get(key_of(info.segment), 0, FILE_HEADER)
            return decode_file_header(head).store
        except (SegmentError, BucketError):
            continue
    if some:
        raise MailError(
            Kind.UNAVAILABLE, f"blobs: {bucket.options.place} has lost its identity"
        )
    return b""


def _make(bucket: Bucket) -> bytes:
    """Make an identity; of several that try at once, one wins."""
    made = uuid.uuid4()
    text = f"mailserverd-blobs 1 {made}\n".encode()
    try:
        bucket.put_new(_STORE, text)
    except BucketError as e:
        if e.code != EXISTS:
            raise
    return _read(bucket)


def advice(bucket: Bucket, error: BucketError) -> MailError:
    """Say what is wrong and what would be right, for whoever starts the daemon."""
    options = bucket.options
    if error.code == NO_BUCKET:
        why = f"there is no bucket {options.bucket}; make it, or correct its name"
    elif error.code in {UNREACHABLE, SILENT}:
        why = (
            f"it cannot be reached ({error.text}); endpoint=... must name a service "
            "that runs"
        )
    elif error.code == NO_CREDENTIALS:
        why = (
            "no credentials were found; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or add credentials=FILE to the URL"
        )
    elif error.status in {401, 403}:
        why = (
            f"{bucket.credentials} are refused ({error.code}); they must allow to "
            "list, get, put and delete objects there"
        )
    elif error.status in {301, 307, 400}:
        why = f"{error.code}: {error.text}; is region={options.region or '...'} right?"
    else:
        why = str(error)
    return MailError(Kind.UNAVAILABLE, f"blobs: {options.place}: {why}")
