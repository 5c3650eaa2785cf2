"""``storage blobs``: names of commands -> functions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.services.collector import RATE, Plan
from mailserverd.services.inspection import Inspection
from storage.compaction import Policy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailserverd.app.graph import Graph

    Progress = Callable[[dict[str, Any]], None]


def blob_commands(graph: Graph) -> dict[str, Callable[..., Awaitable[Any]]]:
    """Return the commands; each reports what it does through ``progress``."""
    stores, collector = graph.stores, graph.collector
    inspection = Inspection(stores.shard_dbs, graph.queue, stores.blobs, graph.clock)

    async def verify(progress: Progress, rate: int = RATE) -> dict[str, Any]:
        return await inspection.verify(_positive("rate", rate), progress)

    async def stats(progress: Progress, rate: int = RATE) -> dict[str, Any]:
        found = await inspection.stats(_positive("rate", rate), progress)
        counted = await graph.counted()  # since the start, in all processes
        puts, syncs = int(counted.blobs), int(counted.blob_syncs)
        each = syncs / puts if puts else 0.0
        return {**found, "puts": puts, "syncs": syncs, "syncs_per_put": each}

    async def compact(
        progress: Progress,
        rate: int = RATE,
        grace: int | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        policy = Policy()
        if grace is not None:
            linger = min(_positive("grace", grace), policy.linger)
            policy = dataclasses.replace(policy, grace=float(grace), linger=linger)
        plan = Plan(policy, _positive("rate", rate), dry_run)
        done = await collector.run(plan, progress)
        return {**dataclasses.asdict(done), "dry_run": dry_run}

    return {
        "storage.blobs.verify": verify,
        "storage.blobs.stats": stats,
        "storage.blobs.compact": compact,
    }


def _positive(name: str, value: int) -> int:
    if value < 0:
        raise MailError(Kind.INVALID, f"{name} must not be negative")
    return value
