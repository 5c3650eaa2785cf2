"""Two worker processes beside one: messages per second, CPU per message, memory."""

from __future__ import annotations

import pathlib
import tempfile
from typing import TYPE_CHECKING

from scripts.benchmarks import common
from scripts.benchmarks.common import Figure
from scripts.benchmarks.smtp import Ours, deliver

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = ((10, 1000), (50, 2000))  # sessions, messages of 5 KB


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield the figures of one process and of two workers."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as name:
        for workers in (1, 2):
            server = Ours(pathlib.Path(name) / str(workers))
            server.daemon.override(
                f"[server]\nworkers = {workers}\n", "60-workers.toml"
            )
            try:
                server.start()
                yield from _figures(server, workers, quick=quick)
            finally:
                server.stop()


def _figures(server: Ours, workers: int, *, quick: bool) -> Iterator[Figure]:
    shown = f"{workers} worker{'s' * (workers > 1)}"
    deliver(server, 10, 200, 5120)  # warm
    rounds = 1 if quick else 3
    for sessions, count in CASES:
        amount = count // 3 if quick else count
        before = common.cpu(server.pids())
        times = [deliver(server, sessions, amount, 5120) for _ in range(rounds)]
        used = (common.cpu(server.pids()) - before) / (amount * rounds)
        label = f"{shown}, {sessions} sessions"
        rate = amount / common.median(times)
        yield Figure(f"SMTP 5 KB, {label}", server.name, rate, "messages/s")
        yield Figure(f"CPU, {label}", server.name, used * 1000, "ms/message")
    sizes = {_name(pid): common.pss(pid, alone=True) for pid in server.pids()}
    for name, size in sizes.items():
        yield Figure(f"memory, {shown}: {name}", server.name, size, "MB PSS")


def _name(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
