"""Puts that wait to be written together: what blob engines share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from storage.model import BlobRef
from storage.segments import RECORD_HEADER, Payload

if TYPE_CHECKING:
    from collections.abc import Sequence

Waiting = tuple[Payload, asyncio.Future[BlobRef]]


def octets_of(waiting: Sequence[Waiting]) -> int:
    """Return how many octets of a segment these take."""
    return sum(payload.length + RECORD_HEADER for payload, _ in waiting)


def first(waiting: Sequence[Waiting], octets: int, records: int) -> int:
    """Return how many form a batch: not more than the limits, at least one."""
    count = total = 0
    for payload, _ in waiting[:records]:
        total += payload.length + RECORD_HEADER
        if count and total > octets:
            break
        count += 1
    return count


def answer(
    batch: Sequence[Waiting], refs: Sequence[BlobRef], error: Exception | None
) -> None:
    """Tell a whole batch; callers that have gone are passed over."""
    for index, (_, done) in enumerate(batch):
        if done.done():
            continue
        if error:
            done.set_exception(_copy(error))
        else:
            done.set_result(refs[index])


def _copy(error: Exception) -> Exception:
    """Return an exception of its own for each waiter (a traceback grows with each
    raise)."""
    if isinstance(error, MailError):
        fresh = MailError(error.kind, error.text, **error.details)
        fresh.__cause__ = error.__cause__
        return fresh
    return error
