"""A worker: serves connections of every protocol, for any account.

It has all services of a single daemon but for background work: what it cannot do
itself (searching words, waking the queue) it asks of the background process.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mailserverd.app.fronts import Fronts, Share
from mailserverd.app.graph import Parts, build
from mailserverd.app.stores import Together, open_stores
from mailserverd.app.tasks import Tasks, collect_less
from mailserverd.core import metrics
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ipc import Link, Peer
from mailserverd.core.log import get_logger
from mailserverd.core.ports import SystemClock
from mailserverd.services.changes import DEFERRED, QUEUE
from mailserverd.services.figures import counted
from mailserverd.settings import PROTOCOLS
from storage.bus.sockets import SocketBus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mailserverd.app.graph import Graph
    from mailserverd.app.member import Common
    from mailserverd.settings import Settings
    from storage.text import Hits, Query

log = get_logger("worker")
SEARCH_LIMIT = 40.0  # seconds; longer than the index's own
SOON = 0.5  # seconds that a search waits for a background process that is not there
HERE = frozenset(PROTOCOLS) - {"metrics"}  # what workers listen for


class Announced(asyncio.Event):
    """An event of which the background process hears, too."""

    def __init__(self, announce: Callable[[], None]) -> None:
        super().__init__()
        self._announce = announce

    def set(self) -> None:
        """Say that it happened."""
        super().set()
        self._announce()


class RemoteIndex:
    """``SearchIndex`` of the background process, for searching alone."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def search(self, account: int, query: Query) -> Hits:
        """Return the emails whose indexed words match, and the index's watermark.

        UNAVAILABLE when there is no answer: whoever asks can look at the texts.
        """
        asked = self._link.call("search", account, query, wait=SOON)
        try:
            async with asyncio.timeout(SEARCH_LIMIT):
                hits: Hits = await asked
        except TimeoutError:
            raise MailError(Kind.UNAVAILABLE, "search took too long") from None
        return hits

    async def update(
        self,
        account: int,
        documents: Sequence[tuple[int, bytes]],
        removed: Sequence[int],
        since: int,
        watermark: int,
    ) -> None:
        """Refuse: workers do not index."""
        raise MailError(Kind.UNSUPPORTED)

    async def watermark(self, account: int) -> int:
        """Refuse: workers do not index."""
        raise MailError(Kind.UNSUPPORTED)

    async def drop(self, account: int) -> None:
        """Refuse: workers do not index."""
        raise MailError(Kind.UNSUPPORTED)

    async def close(self) -> None:
        """Nothing: the index is another process's."""


class Worker:
    """``Role`` of a process that serves."""

    graph: Graph
    fronts: Fronts

    def __init__(self, common: Common, reactor: Any) -> None:
        self._common = common
        self._reactor = reactor
        self._tasks = Tasks()
        self._clock = SystemClock()
        self._open = self._serving = False

    async def open(self) -> None:
        """Join the others, open everything with them."""
        common, settings = self._common, self._common.settings
        if common.control is not None:
            common.control.close()
        others = [slot for slot in common.slots if slot != common.name]
        self._bus = await SocketBus.open(common.run_dir, common.name, others)
        opening = Together(settings, common.run_dir, common.number)
        stores = await open_stores(settings, self._clock, opening)
        self._link = Link(
            common.run_dir / "background.sock", self._service(), up=self._hello
        )
        parts = Parts(
            self._bus, RemoteIndex(self._link), processes=settings.server.processes
        )
        self.graph = graph = build(settings, stores, self._clock, parts)
        graph.queue.changed = Announced(lambda: graph.changes.announce(QUEUE, 0))
        graph.acceptances.deferred = Announced(
            lambda: graph.changes.announce(DEFERRED, 0)
        )
        graph.authenticator.throttle.told = self._throttled
        share = Share(HERE, common.sockets.take, common.tally)
        self.fronts = Fronts(graph, settings, self._reactor, share)
        self._open = True
        if self._link.peer is not None:
            self._hello(self._link.peer)

    async def serve(self) -> None:
        """Listen."""
        self._serving = True
        await self.fronts.open(self.fronts.settings)
        work = self.graph.beside() | {
            "changes": self.graph.changes.watch,
            "certificates": self.fronts.watch_certificates,
        }
        for name, one in work.items():
            self._tasks.spawn(name, one)
        collect_less()
        log.info("serving")

    async def apply(self, settings: Settings) -> None:
        """Take over new settings."""
        await self.fronts.apply(settings)

    def look_around(self) -> None:
        """Nothing: what a process leaves is the background's to see to."""

    async def drain(self) -> None:
        """Finish what clients have under way."""
        if self._serving:
            await self.fronts.drain(self.fronts.settings.server.drain)
        await self._tasks.stop()
        await self.graph.close()

    async def close(self) -> None:
        """Close the databases."""
        await self.graph.stores.close()
        await self._link.close()
        await self._bus.close()

    # --- for the background process -----------------------------------------------

    def _service(self) -> dict[str, Callable[..., Any]]:
        return {
            "metrics": lambda _: metrics.render(),
            "counted": lambda _: counted(),
            "puts": lambda _: self.graph.stores.blobs.stats().puts,
            "ready": lambda _: self._ready(),
            "refresh": lambda _: self.graph.stores.directory.refresh(now=True),
            "throttle": lambda _, *what: self.graph.authenticator.throttle.hear(*what),
        }

    def _hello(self, peer: Peer) -> None:
        """Be there for the background process, once there is something to ask."""
        if self._open:
            peer.tell("hello", self._common.name)

    def _throttled(self, what: str, user: str, network: str) -> None:
        self._link.tell("throttle", what, user, network)

    async def _ready(self) -> dict[str, str]:
        """Return the checks that fail, by name, with the reason."""
        problems = {}
        for name, check in self.graph.checks().items():
            try:
                await check()
            except MailError as error:
                problems[name] = error.text
        return problems
