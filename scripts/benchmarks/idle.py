"""What waiting costs: the idle daemon, idle connections, and the time to start."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks import common, imap
from scripts.benchmarks.common import Figure
from tests.lib import daemon
from tests.lib.clients import unverified
from tests.lib.dovecot import Dovecot

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

_OURS: set[int] = set()
WARM = 250  # connections before those that are counted
MESSAGES = 200  # in the mailbox that all connections have selected


async def connections(
    port: int, pid: int, count: int, tls: ssl.SSLContext | None = None
) -> float:
    """Return KiB of PSS per connection that idles in a selected mailbox.

    Ours live in one process (an index worker that comes or goes is not theirs),
    Dovecot's in one process each.
    """
    alone = pid in _OURS
    # Enough of them first to use up what the start left free in the heap.
    warm = [await _idle(port, tls) for _ in range(WARM)]
    await asyncio.sleep(1)
    before = common.pss(pid, alone=alone)
    clients = [await _idle(port, tls) for _ in range(count)]
    await asyncio.sleep(2)
    used = common.pss(pid, alone=alone) - before
    for client in (*warm, *clients):
        client.close()
    return used * 1024 / count


async def _idle(port: int, tls: ssl.SSLContext | None) -> imap.Client:
    client = await imap.Client.connect(port, tls)
    await client.login()
    await client.command("SELECT INBOX")
    client.writer.write(b"I IDLE\r\n")
    await client.reader.readline()
    return client


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield the figures of the daemon, and the peer's memory per connection."""
    count = 100 if quick else 500
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as name:
        other = "alice@example.test:benchmark"
        home = Path(name) / "ours"
        ours = daemon.make(home, f"{imap.USER}:{imap.PASSWORD}", other)
        times = []
        for _ in range(2 if quick else 5):
            started = time.monotonic()
            ours.start()
            times.append(time.monotonic() - started)
            time.sleep(1)
            memory = common.pss(ours.pid)
            ours.stop()
        yield Figure("start to listening", "mailserverd", common.median(times), "s")
        yield Figure("idle with two accounts", "mailserverd", memory, "MB PSS")
        label = f"memory per idle connection, {count}"
        for port, tls, suffix in ((143, None, ""), (993, unverified(), ", TLS")):
            with daemon.running(ours):
                _OURS.add(ours.pid)
                if tls is None:
                    asyncio.run(imap.fill(ours.port(143), MESSAGES))
                used = asyncio.run(connections(ours.port(port), ours.pid, count, tls))
            yield Figure(label + suffix, "mailserverd", used, "KiB")
        peer = Dovecot(Path(name) / "dovecot", password=imap.PASSWORD)
        try:
            peer.start()
            asyncio.run(imap.fill(peer.imap, MESSAGES))
            used = asyncio.run(connections(peer.imap, peer.pid, count))
            yield Figure(label, "Dovecot", used, "KiB")
        finally:
            peer.stop()
