"""COPY of thousands: cut into units, all or nothing nevertheless."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.log import get_logger
from storage.metadata import copies
from storage.model import CopyResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.core.types import Access
    from mailserverd.services.changes import Changes
    from storage.api import MetadataStore

    Args = tuple[int, Sequence[int], int]  # source mailbox, uids, target mailbox

log = get_logger("messages")
CHUNK = 2000  # messages copied by one unit


async def copy_in_chunks(
    store: MetadataStore, changes: Changes, access: Access, args: Args
) -> CopyResult:
    """Copy piece by piece; when one fails, take back what the others placed.

    RFC 9051 section 6.4.7: the target is then as it was before.
    """
    source, uids, target = args
    parts: list[CopyResult] = []
    try:
        for start in range(0, len(uids), CHUNK):
            some = uids[start : start + CHUNK]
            piece = (source, some, target)
            parts.append(await store.write(access, copies.copy_many, piece))
            changes.announce(access.account, parts[-1].modseq)
    except BaseException:
        log.warning("copy-taken-back", account=access.account, pieces=len(parts))
        for part in parts:
            back = (target, part.target_uids)
            modseq = await store.write(access, copies.take_back, back)
            changes.announce(access.account, modseq)
        raise
    return joined(parts)


def joined(parts: Sequence[CopyResult]) -> CopyResult:
    """Return the results of pieces as one."""
    return CopyResult(
        parts[0].uidvalidity,
        tuple(uid for part in parts for uid in part.source_uids),
        tuple(uid for part in parts for uid in part.target_uids),
        parts[-1].modseq,
    )
