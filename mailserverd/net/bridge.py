"""The only crossing between Twisted's Deferreds and asyncio.

All our coroutines are asyncio tasks on the loop that Twisted's asyncio reactor runs;
nobody else sees a Deferred: a bare one cannot be awaited in a task, nor asyncio in its.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from mailserverd.core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from twisted.internet.defer import Deferred

T = TypeVar("T")
log = get_logger("net")
_tasks: set[asyncio.Task[Any]] = set()


def spawn(coroutine: Coroutine[Any, Any, T], *, name: str = "") -> asyncio.Task[T]:
    """Start a task from a Twisted callback; it is kept alive and its failure logged.

    The task gets a copy of the context: bind log context inside it, since what a
    Twisted callback sets leaks into the next connection.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name or None)
    _tasks.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task-failed", task=task.get_name(), exc_info=error)


async def wait(deferred: Deferred[T]) -> T:
    """Await a Deferred from an asyncio task."""
    result: T = await deferred.asFuture(asyncio.get_running_loop())
    return result
