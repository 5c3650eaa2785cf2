"""Commands on the data itself, while no daemon runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mailserverd.app.commands import Commands
from mailserverd.app.databases import migrate, status
from mailserverd.app.graph import build
from mailserverd.app.stores import data_lock, make_missing, open_stores
from mailserverd.core import log
from mailserverd.core.ports import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mailserverd.core.ports import Clock
    from mailserverd.settings import Settings

    Handler = Callable[
        [str, dict[str, Any], Callable[[dict[str, Any]], None]], Awaitable[Any]
    ]

UNHEARD = (
    ", which does not listen at control.sock: it is starting or stopping, or the "
    "socket was removed and it has to be restarted"
)


@contextlib.asynccontextmanager
async def commands(settings: Settings, clock: Clock) -> AsyncIterator[Commands]:
    """Open everything for one command."""
    async with contextlib.AsyncExitStack() as stack:
        stores = await open_stores(settings, clock)
        stack.push_async_callback(stores.close)
        graph = build(settings, stores, clock)
        stack.push_async_callback(graph.close)
        yield Commands(settings, graph)


@contextlib.asynccontextmanager
async def offline(settings: Settings, *, make: bool = False) -> AsyncIterator[Handler]:
    """Take the data directory's lock, open what a command needs, close it after.

    With ``make`` databases that do not exist are made (``init``).
    """
    clock = SystemClock()
    log.configure("warning", "text")
    with data_lock(settings, UNHEARD):
        if make:
            await make_missing(settings, clock)

        async def handle(
            command: str,
            args: dict[str, Any],
            progress: Callable[[dict[str, Any]], None],
        ) -> Any:
            # These two have to work on what cannot be opened.
            if command == "storage.migrate":
                return await migrate(settings, clock, **args)
            if command == "storage.status":
                return await status(settings, clock, **args)
            async with commands(settings, clock) as opened:
                return await opened.run(command, args, progress)

        yield handle
