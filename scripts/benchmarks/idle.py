"""The idle daemon: memory, and how long it takes from start to listening."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks import common
from scripts.benchmarks.common import Figure
from tests.lib import daemon

if TYPE_CHECKING:
    from collections.abc import Iterator


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield the figures."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as name:
        accounts = ("a@example.test:benchmark", "b@example.test:benchmark")
        ours = daemon.make(Path(name) / "ours", *accounts)
        times = []
        for _ in range(2 if quick else 5):
            started = time.monotonic()
            ours.start()
            times.append(time.monotonic() - started)
            time.sleep(1)
            assert ours.process is not None
            memory = common.pss(ours.process.pid)
            ours.stop()
        yield Figure("start to listening", "mailserverd", common.median(times), "s")
        yield Figure("idle with two accounts", "mailserverd", memory, "MB PSS")
