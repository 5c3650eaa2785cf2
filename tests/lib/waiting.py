"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
# A limit says that nothing will come; on a busy machine things take their time.
LIMIT = 30.0


def eventually(
    check: Callable[[], T], what: str = "did not happen", limit: float = LIMIT
) -> T:
    """Return what a check says as soon as that is true; AssertionError in the end."""
    until = time.monotonic() + limit
    while not (found := check()):
        assert time.monotonic() < until, what
        time.sleep(0.02)
    return found


async def until(
    check: Callable[[], object], what: str = "did not happen", limit: float = LIMIT
) -> None:
    """Wait until a check is true, while the loop goes on; AssertionError in the end."""
    end = time.monotonic() + limit
    while not check():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.002)
