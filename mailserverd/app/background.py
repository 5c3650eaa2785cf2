"""The background process: what one process of the daemon does for all, in no hurry.

Runs of the queue, indexing, collection, pruning, commands, metrics.  It owns no
database: its units go to the workers that do, and it ends before them.  It is also
where workers meet: what one of them has to tell the others goes through here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mailserverd.app.commands import Commands
from mailserverd.app.fronts import Fronts, Share
from mailserverd.app.graph import Parts, build
from mailserverd.app.hub import Hub
from mailserverd.app.stores import Together, open_stores
from mailserverd.app.tasks import Tasks, collect_less
from mailserverd.core.log import get_logger
from mailserverd.core.ports import SystemClock
from mailserverd.net import control
from mailserverd.net.http_metrics import MetricsSite
from mailserverd.services.changes import DEFERRED, QUEUE
from storage.bus.sockets import SocketBus
from storage.engines import open_search

if TYPE_CHECKING:
    import asyncio

    from mailserverd.app.graph import Graph
    from mailserverd.app.member import Common
    from mailserverd.settings import Settings

log = get_logger("background")
NICENESS = 10
GRACE = 5  # seconds for which a worker may still be applying what it accepted
HERE = frozenset({"metrics"})  # what is listened for here


class Background:
    """``Role`` of the process that works in the background."""

    graph: Graph
    fronts: Fronts

    def __init__(self, common: Common, reactor: Any) -> None:
        self._common = common
        self._reactor = reactor
        self._tasks = Tasks()
        self._clock = SystemClock()
        self._control: asyncio.Server | None = None

    async def open(self) -> None:
        """Join the workers."""
        os.nice(NICENESS)
        common, settings = self._common, self._common.settings
        others = [slot for slot in common.slots if slot != common.name]
        self._bus = await SocketBus.open(common.run_dir, common.name, others)
        stores = await open_stores(
            settings, self._clock, Together(settings, common.run_dir, worker=-1)
        )
        index = open_search(settings.storage.search)
        self._hub = Hub(index, others)
        parts = Parts(
            self._bus,
            index,
            processes=settings.server.processes,
            busy=lambda: self._hub.busy,
            counted=self._hub.counted,
            grace=GRACE,
        )
        self.graph = graph = build(settings, stores, self._clock, parts)
        stores.directory.told = self._hub.refresh
        graph.changes.subscribe(QUEUE, lambda *_: graph.queue.changed.set())
        graph.changes.subscribe(DEFERRED, lambda *_: graph.acceptances.deferred.set())
        site = MetricsSite(
            graph.checks() | {"workers": self._hub.ready}, self._hub.render
        )
        share = Share(HERE, common.sockets.take, metrics=site)
        self.fronts = Fronts(graph, settings, self._reactor, share)
        await self._hub.listen(common.run_dir / "background.sock")
        await graph.recover()

    async def serve(self) -> None:
        """Begin everything."""
        graph, common = self.graph, self._common
        assert common.control is not None
        await self.fronts.open(self.fronts.settings)
        commands = Commands(common.settings, graph)
        self._control = await control.serve(common.control, commands.run)
        work = graph.beside() | graph.background()
        work["changes"] = graph.changes.watch
        work["arrivals"] = lambda: self._hub.watch(self._clock)
        for name, one in work.items():
            self._tasks.spawn(name, one)
        self._tasks.spawn("certificates", self.fronts.watch_certificates)
        collect_less()
        log.info("serving")

    async def apply(self, settings: Settings) -> None:
        """Take over new settings."""
        await self.fronts.apply(settings)

    def look_around(self) -> None:
        """Take up what a worker had accepted and not applied when it died."""
        self.graph.acceptances.deferred.set()
        self.graph.queue.changed.set()

    async def drain(self) -> None:
        """End what runs; an attempt under way may take its time."""
        if self._control is not None:  # it serves
            self._control.close()
            await self.fronts.drain(0)
        await self.graph.runner.rest()
        await self._tasks.stop()
        await self.graph.close()

    async def close(self) -> None:
        """Close the databases' readers."""
        self._hub.close()
        await self.graph.stores.close()
        await self._bus.close()
