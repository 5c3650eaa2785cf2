"""Gauges that nobody sets in passing: queue depth and age, syncs per message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import REGISTRY, gauge

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock
    from storage.metadata.queue import MailQueue

log = get_logger("figures")
INTERVAL = 5.0
DEPTH = gauge("queue_recipients", "Recipients in the queue", ("state",))
AGE = gauge("queue_oldest_seconds", "Age of the oldest unfinished message")
ACCEPTANCES = gauge("queue_acceptances", "Acceptances not yet applied everywhere")
SYNCS = gauge("syncs_per_message", "Blob and metadata syncs per stored blob")


async def watch_queue(queue: MailQueue, clock: Clock) -> None:
    """Set the gauges until cancelled; a queue that is down leaves them as they are."""
    while True:
        SYNCS.set(syncs_per_message())
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


def syncs_per_message() -> float:
    """Return (blob syncs + commits) / blobs stored since the start; 0 before any.

    Under load it falls well below 1: that is what group commit is for.
    """
    blobs = commits = syncs = 0.0
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if sample.name == "mailserverd_blob_puts_total":
                blobs = sample.value
            elif sample.name == "mailserverd_blob_syncs_total":
                syncs = sample.value
            elif sample.name == "mailserverd_metadata_commits_total":
                commits += sample.value
    return (syncs + commits) / blobs if blobs else 0.0
