"""Group commit on slower disks: messages per second and syncs per message."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks.common import Figure, median
from scripts.benchmarks.smtp import source
from tests.lib import daemon
from tests.lib.slow_disk import slow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_CHECKS = "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
DELAYS = (0.0, 0.005, 0.02)  # seconds more per sync
SESSIONS = (1, 10, 50)
SIZE = 5120  # octets


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield rate and syncs for each delay and number of sessions."""
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as name:
        ours = daemon.make(Path(name) / "ours", "bob@example.test:benchmark")
        ours.override(NO_CHECKS)
        for delay in DELAYS:
            with slow(ours, delay, Path(name) / f"{delay}.trace") as syncs:
                source(ours.port(25), 10, 200, SIZE)  # warm
                for sessions in SESSIONS:
                    label = f"sync +{delay * 1000:.0f} ms, {sessions} sessions"
                    yield from _figures(ours.port(25), syncs, sessions, label, rounds)


def _figures(
    port: int, syncs: Callable[[], int], sessions: int, label: str, rounds: int
) -> Iterator[Figure]:
    count = {1: 60, 10: 400}.get(sessions, 1500)
    before, times = syncs(), []
    for _ in range(rounds):
        started = time.monotonic()
        source(port, sessions, count, SIZE)
        times.append(time.monotonic() - started)
    made = (syncs() - before) / (count * rounds)
    yield Figure(label, "mailserverd", count / median(times), "messages/s")
    yield Figure(f"syncs, {label}", "mailserverd", made, "/message")
