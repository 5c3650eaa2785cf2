"""Message bytes on S3 (SeaweedFS, synced) beside the same daemon on files."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks.common import Figure, cpu, median, pss, tree
from scripts.benchmarks.smtp import source
from tests.lib import daemon, seaweedfs

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_CHECKS = "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
COUNTS = {1: 60, 20: 800, 50: 1500}  # messages by sessions
SIZE = 5120  # octets


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield rate, CPU and objects for each number of sessions."""
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as name:
        bucket = seaweedfs.site().bucket()
        place = f'[storage]\nblobs = "{seaweedfs.url("mail", bucket=bucket)}"\n'
        for server, settings in (("mailserverd", place), ("on files", "")):
            ours = daemon.make(Path(name) / server[:2], "bob@example.test:benchmark")
            ours.override(NO_CHECKS + settings)
            with daemon.running(ours):
                source(ours.port(25), 10, 200, SIZE)  # warm
                for sessions in COUNTS:
                    yield from _figures(ours, server, sessions, rounds, bucket)
                yield Figure("S3: memory", server, pss(ours.pid), "MB PSS")


def _figures(
    ours: daemon.Daemon, server: str, sessions: int, rounds: int, bucket: str
) -> Iterator[Figure]:
    count, times = COUNTS[sessions], []
    before, used = len(seaweedfs.site().objects(bucket)), cpu(tree(ours.pid))
    for _ in range(rounds):
        started = time.monotonic()
        source(ours.port(25), sessions, count, SIZE)
        times.append(time.monotonic() - started)
    used = (cpu(tree(ours.pid)) - used) / (count * rounds)
    label = f"S3: 5 KB, {sessions} sessions"
    yield Figure(label, server, count / median(times), "messages/s")
    yield Figure(f"{label}, CPU", server, used * 1000, "ms/message")
    if server == "mailserverd":
        made = len(seaweedfs.site().objects(bucket)) - before
        each = made / (count * rounds)
        yield Figure(f"{label}, objects", server, each, "/message")
