"""What a segment store says of itself: to the collector, to commands, to metrics."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter

if TYPE_CHECKING:
    from storage.model import BlobRef
    from storage.segments import Damage

log = get_logger("blobs")
PUTS = counter("blob_puts", "Blobs stored")
SYNCS = counter("blob_syncs", "Syncs of the blob store: fdatasync calls, or PUTs")


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A segment as a listing shows it; ``modified`` in seconds since the epoch."""

    segment: int
    sealed: bool
    octets: int
    modified: float


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentReport:
    """What verifying a segment found."""

    segment: int
    records: int
    octets: int
    damage: tuple[Damage, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class BlobStats:
    """Counted since the store was opened; ``syncs / puts`` is the measure.

    A sync is what makes a batch durable: fdatasync on a disk, a PUT on S3.
    """

    puts: int
    batches: int
    syncs: int


def damaged(ref: BlobRef, error: Exception) -> MailError:
    """Log damage and return what the caller is told."""
    log.error(
        "blob-damaged",
        segment=ref.segment,
        offset=ref.offset,
        hash=ref.hash.hex(),
        error=str(error),
    )
    return MailError(Kind.UNAVAILABLE, "message store is damaged", damaged=True)
