"""Gauges that nobody sets in passing: queue depth and age, syncs per message."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import REGISTRY, gauge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailserverd.core.ports import Clock
    from storage.metadata.queue import MailQueue

log = get_logger("figures")
INTERVAL = 5.0
DEPTH = gauge("queue_recipients", "Recipients in the queue", ("state",))
AGE = gauge("queue_oldest_seconds", "Age of the oldest unfinished message")
ACCEPTANCES = gauge("queue_acceptances", "Acceptances not yet applied everywhere")
COUNTERS = {
    "mailserverd_blob_puts_total": "blobs",
    "mailserverd_blob_syncs_total": "blob_syncs",
    "mailserverd_metadata_commits_total": "commits",
}
SYNCS = gauge("syncs_per_message", "Blob and metadata syncs per stored blob")


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """What was stored since the start, and with how many syncs."""

    blobs: float = 0.0
    blob_syncs: float = 0.0
    commits: float = 0.0  # of metadata: a sync each

    def __add__(self, other: Counted) -> Counted:
        return Counted(
            self.blobs + other.blobs,
            self.blob_syncs + other.blob_syncs,
            self.commits + other.commits,
        )

    @property
    def syncs_per_message(self) -> float:
        """Under load it falls well below 1: that is what group commit is for."""
        return (self.blob_syncs + self.commits) / self.blobs if self.blobs else 0.0


async def counted_here() -> Counted:
    """Return what this process counted."""
    return counted()


def counted() -> Counted:
    """Return what this process counted."""
    sums = dict.fromkeys(COUNTERS.values(), 0.0)
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if sample.name in COUNTERS:
                sums[COUNTERS[sample.name]] += sample.value
    return Counted(**sums)


async def watch_queue(
    queue: MailQueue,
    clock: Clock,
    count: Callable[[], Awaitable[Counted]] = counted_here,
) -> None:
    """Set the gauges until cancelled; a queue that is down leaves them as they are."""
    while True:
        SYNCS.set((await count()).syncs_per_message)
        try:
            stats = await queue.stats()
        except MailError as error:
            log.warning("queue-stats-failed", error=str(error))
        else:
            for state in ("queued", "leased", "held", "notices"):
                DEPTH.labels(state).set(getattr(stats, state))
            age = clock.now() - stats.oldest if stats.oldest else 0.0
            AGE.set(max(age, 0.0))
            ACCEPTANCES.set(stats.acceptances)
        await asyncio.sleep(INTERVAL)
