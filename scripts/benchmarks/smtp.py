"""SMTP in: delivered messages per second, syncs and CPU per message."""

from __future__ import annotations

import imaplib
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks import common
from scripts.benchmarks.common import Figure
from tests.lib import daemon
from tests.lib.dovecot import Dovecot
from tests.lib.knot import Knot
from tests.lib.postfix import Postfix

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, PASSWORD = "bob@example.test", "benchmark"
LIMIT = 300.0  # seconds for one delivery run
SENDER = "load@sender.test"
ZONE = """\
@ TXT "v=spf1 ip4:127.0.0.0/8 -all"
_dmarc TXT "v=DMARC1; p=reject"
"""


def source(port: int, sessions: int, count: int, size: int) -> None:
    """Send ``count`` messages with Postfix's own load generator, sessions reused."""
    subprocess.run(
        [
            "/usr/sbin/smtp-source",
            "-d",
            "-s",
            str(sessions),
            "-m",
            str(count),
            "-l",
            str(size),
            "-f",
            SENDER,
            "-t",
            USER,
            f"127.0.0.1:{port}",
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )


class Ours:
    """mailserverd with SPF, DKIM and DMARC answered by a cached name server."""

    name = "mailserverd"

    def __init__(self, home: Path) -> None:
        self.dns = Knot({"sender.test": ZONE})
        self.daemon = daemon.make(home / "ours", f"{USER}:{PASSWORD}")
        self.daemon.override(f'[dns]\nservers = ["127.0.0.1:{self.dns.port}"]\n')

    def start(self) -> None:
        self.dns.start()
        self.daemon.start()
        assert self.daemon.process is not None
        self.port, self.imap = self.daemon.port(25), self.daemon.port(143)
        self.pid = self.daemon.process.pid

    def pids(self) -> list[int]:
        return common.tree(self.pid)

    def roots(self) -> list[int]:
        return [self.pid]

    def stop(self) -> None:
        self.daemon.stop()
        self.dns.stop()


class Peers:
    """Postfix delivering to Dovecot by LMTP, no checks."""

    name = "Postfix + Dovecot LMTP"

    def __init__(self, home: Path) -> None:
        self.dovecot = Dovecot(home / "dovecot", password=PASSWORD)
        settings = (
            "myhostname = mail.example.test\nmydestination =\n"
            "virtual_mailbox_domains = example.test\n"
            "maximal_backoff_time = 60s\nmessage_size_limit = 50000000\n"
            f"virtual_transport = lmtp:inet:127.0.0.1:{self.dovecot.lmtp}\n"
        )
        self.postfix = Postfix(home / "postfix", settings)
        self.port, self.imap = self.postfix.port, self.dovecot.imap

    def start(self) -> None:
        self.dovecot.start()
        self.postfix.start()

    def roots(self) -> list[int]:
        master = (self.postfix.home / "queue/pid/master.pid").read_text()
        return [int(master), self.dovecot.pid]

    def pids(self) -> list[int]:
        return [pid for root in self.roots() for pid in common.tree(root)]

    def stop(self) -> None:
        self.postfix.stop()
        self.dovecot.stop()


def deliver(server: Ours | Peers, sessions: int, count: int, size: int) -> float:
    """Return the seconds until ``count`` messages are stored, as IMAP counts them."""
    with imaplib.IMAP4("127.0.0.1", server.imap) as imap:
        imap.login(USER, PASSWORD)
        before = _messages(imap)
        started = time.monotonic()
        source(server.port, sessions, count, size)
        while (found := _messages(imap) - before) < count:
            if time.monotonic() - started > LIMIT:
                raise RuntimeError(f"{server.name}: {found} of {count} messages")
            time.sleep(0.05)
        return time.monotonic() - started


def _messages(imap: imaplib.IMAP4) -> int:
    data = imap.status("INBOX", "(MESSAGES)")[1][0]
    assert isinstance(data, bytes)
    return int(data.rpartition(b"MESSAGES ")[2].rstrip(b")"))


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield the figures of both servers."""
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-") as name:
        for kind in (Ours, Peers):
            server = kind(Path(name))
            try:
                server.start()
                yield from _figures(server, rounds, quick=quick)
            finally:
                server.stop()


def _figures(server: Ours | Peers, rounds: int, *, quick: bool) -> Iterator[Figure]:
    deliver(server, 10, 200, 5120)  # warm
    cases = ((10, 5120, 1000), (50, 5120, 2000), (50, 102400, 400))
    for sessions, size, count in cases:
        amount = count // 3 if quick else count
        before = common.cpu(server.pids())
        times = [deliver(server, sessions, amount, size) for _ in range(rounds)]
        used = (common.cpu(server.pids()) - before) / (amount * rounds)
        label = f"{size // 1024} KB, {sessions} sessions"
        rate = amount / common.median(times)
        yield Figure(f"SMTP {label}", server.name, rate, "messages/s")
        yield Figure(f"CPU {label}", server.name, used * 1000, "ms/message")
    for sessions in (10, 50):
        yield _syncs(server, sessions)


def _syncs(server: Ours | Peers, sessions: int) -> Figure:
    count, total = 500, 0
    if len(server.roots()) == 1:
        total = common.syncs(
            server.roots()[0], lambda: void(deliver(server, sessions, count, 5120))
        )
    else:
        first, second = server.roots()
        inner: list[int] = []
        total = common.syncs(
            first,
            lambda: inner.append(
                common.syncs(
                    second, lambda: void(deliver(server, sessions, count, 5120))
                )
            ),
        )
        total += sum(inner)
    return Figure(f"syncs, {sessions} sessions", server.name, total / count, "/message")


def void(_: object) -> None:
    """Drop a result."""
