"""A slow disk: the slower a sync and the more senders, the more messages share one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from scripts.benchmarks.smtp import source
from tests.lib import daemon
from tests.lib.slow_disk import slow

if TYPE_CHECKING:
    import pathlib

pytestmark = [
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
    pytest.mark.skipif(
        not shutil.which("smtp-source", path="/usr/sbin"),
        reason="smtp-source (Postfix) is not installed",
    ),
]
NO_CHECKS = "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
RUNS = ((1, 20), (10, 200), (50, 500))  # sessions, messages


@pytest.mark.parametrize("delay", [0.005, 0.02])
def test_syncs_per_message_fall_as_load_rises(
    delay: float, tmp_path: pathlib.Path
) -> None:
    ours = daemon.make(tmp_path / "ours", "bob@example.test:secret")
    ours.override(NO_CHECKS)
    with slow(ours, delay, tmp_path / "trace") as syncs:
        source(ours.port(25), 10, 20, 5120)  # warm
        found = []
        for sessions, count in RUNS:
            before = syncs()
            source(ours.port(25), sessions, count, 5120)
            found.append((syncs() - before) / count)
    alone, ten, fifty = found
    # The blob's and the row's: alone each message pays for both before its answer.
    assert alone >= 2
    assert ten <= 0.8
    assert fifty <= 0.25
