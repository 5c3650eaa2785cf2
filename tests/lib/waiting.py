"""Waiting for a condition, never for a time."""

from __future__ import annotations

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
