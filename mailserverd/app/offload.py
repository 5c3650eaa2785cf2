"""The ``Offload`` port: a bounded thread pool."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class ThreadOffload:
    """At most ``threads`` calls at once; others wait in order."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, name)

    async def __call__(self, work: Callable[..., T], *args: object) -> T:
        """Run ``work(*args)`` in a thread and await its result."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def close(self) -> None:
        """Let what runs end; drop what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)
