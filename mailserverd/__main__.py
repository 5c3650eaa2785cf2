"""``python -m mailserverd``: installs the reactor where needed, then the command line.

The only place that may name Twisted's reactor; everything else is handed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mailserverd.cli import main as command_line

Main = Callable[[Any], Awaitable[int]]


def start(main_task: Main) -> int:
    """Run ``main_task(reactor)`` on Twisted's asyncio reactor over uvloop.

    Returns the exit status that the task returns; the reactor stops with it.
    """
    import uvloop  # noqa: PLC0415 - only the daemon needs a reactor
    from twisted.internet import asyncioreactor  # noqa: PLC0415

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    install: Any = asyncioreactor.install
    install(loop)
    from twisted.internet import reactor  # noqa: PLC0415, TID251 - the one place

    ended: list[int | BaseException] = []

    async def whole() -> None:
        try:
            ended.append(await main_task(reactor))
        except BaseException as error:
            ended.append(error)
        finally:
            loop.call_soon(running.stop)

    running: Any = reactor
    running.callWhenRunning(lambda: tasks.append(loop.create_task(whole())))
    tasks: list[asyncio.Task[None]] = []
    running.run(installSignalHandlers=False)
    outcome = ended[0] if ended else 1
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def main() -> None:
    """Entry point of the ``mailserverd`` command."""
    command_line(obj=start)


if __name__ == "__main__":
    main()
