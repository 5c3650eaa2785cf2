"""Where workers meet: the background process's socket, and what is asked across it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.app.graph import busy
from mailserverd.core import metrics
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ipc import Peer, Server, listen
from mailserverd.core.log import get_logger
from mailserverd.services.figures import Counted, counted

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable, Sequence

    from mailserverd.core.ports import Clock
    from storage.api import SearchIndex
    from storage.text import Hits, Query

log = get_logger("hub")
NAME = "background"
LOOK = 1.0  # seconds between looks at how much mail arrives
PATIENCE = 2.0  # seconds that a worker may take to answer


class Hub:
    """Serves workers, and asks them."""

    def __init__(self, index: SearchIndex, workers: Sequence[str]) -> None:
        self._index = index
        self._names = tuple(workers)
        self._workers: dict[str, Peer] = {}
        self._server: Server | None = None
        self.busy = False  # much mail arrives, at all workers together

    async def listen(self, path: pathlib.Path) -> None:
        """Let workers come."""
        service: dict[str, Callable[..., Any]] = {
            "hello": self._hello,
            "search": self._search,
            "throttle": self._throttle,
        }
        self._server = await listen(path, service, lost=self._lost)

    def close(self) -> None:
        """Let them go."""
        if self._server is not None:
            self._server.close()

    # --- what workers ask -------------------------------------------------------

    def _hello(self, peer: Peer, name: str) -> None:
        self._workers[name] = peer

    def _lost(self, peer: Peer) -> None:
        self._workers = {n: p for n, p in self._workers.items() if p is not peer}

    async def _search(self, _peer: Peer, account: int, query: Query) -> Hits:
        return await self._index.search(account, query)

    def _throttle(self, peer: Peer, *what: str) -> None:
        """Hand on what one worker counted to the others."""
        for other in self._workers.values():
            if other is not peer:
                other.tell("throttle", *what)

    # --- what workers are asked ---------------------------------------------------

    async def _ask(self, method: str) -> dict[str, Any]:
        """Return the workers' answers by name; who does not answer in time is not
        among them."""
        names = tuple(self._workers)
        answers = await asyncio.gather(
            *(_in_time(self._workers[name].call(method)) for name in names),
            return_exceptions=True,
        )
        found = {}
        for name, answer in zip(names, answers, strict=True):
            if not isinstance(answer, BaseException):
                found[name] = answer
            elif isinstance(answer, MailError | TimeoutError):
                log.warning("worker-silent", name=name, method=method)
            else:
                raise answer
        return found

    async def refresh(self) -> None:
        """Let every worker see what changed in the directory, before this returns."""
        await self._ask("refresh")

    async def counted(self) -> Counted:
        """Return what all processes counted."""
        return sum((await self._ask("counted")).values(), counted())

    async def watch(self, clock: Clock) -> None:
        """Keep ``busy`` up to date until cancelled."""
        count = busy(lambda: puts, clock)
        puts = 0
        while True:
            puts = sum((await self._ask("puts")).values())
            self.busy = count()
            await asyncio.sleep(LOOK)

    async def render(self) -> bytes:
        """Return the metrics of all processes."""
        parts = await self._ask("metrics")
        ordered = {name: parts[name] for name in self._names if name in parts}
        return metrics.merge(ordered | {NAME: metrics.render()})

    async def ready(self) -> None:
        """Raise UNAVAILABLE unless a worker could serve."""
        answers = await self._ask("ready")
        if all(answers.values()):  # each says what fails
            problems = "; ".join(
                f"{name}: {', '.join(found)}" for name, found in answers.items()
            )
            raise MailError(Kind.UNAVAILABLE, problems or "no worker answers")


async def _in_time(asked: Awaitable[Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await asked
