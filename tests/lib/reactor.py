"""Twisted's asyncio reactor for one coroutine, as the daemon runs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def run_with_reactor(main: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    """Run ``main(reactor)`` to its end on a reactor and a loop of its own."""
    loop = asyncio.new_event_loop()
    reactor: Any = AsyncioSelectorReactor(loop)
    ended: list[BaseException | None] = []
    tasks: list[asyncio.Task[None]] = []

    async def whole() -> None:
        try:
            await main(reactor)
            ended.append(None)
        except BaseException as error:
            ended.append(error)
        finally:
            loop.call_soon(reactor.stop)

    reactor.callWhenRunning(lambda: tasks.append(loop.create_task(whole())))
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        loop.close()
    if ended and ended[0] is not None:
        raise ended[0]


def listen(reactor: Any, factory: Any) -> tuple[int, Any]:
    """Serve a factory on a free loopback port; returns (port, listening port)."""
    listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
    return listening.getHost().port, listening
