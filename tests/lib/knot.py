"""A real authoritative DNS server (knot) on a free loopback port, for tests.

    with Knot({"example.org": "@ MX 10 mx\nmx A 127.0.0.1"}) as dns:
        resolver = CachingResolver([dns.server], clock=SystemClock())

Zones are given as text without SOA and NS (both are added), names relative to the
zone.  A root zone is added, so that every other name is NXDOMAIN, as it would be at a
real resolver (else knot refuses).  ``update`` replaces zones while it runs.
"""

from __future__ import annotations

import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Self

import dns.exception
import dns.message
import dns.query
import dns.rcode

from tests.lib.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

KNOTD = "/usr/sbin/knotd"
START_LIMIT = 15.0  # seconds
POLL = 0.02

CONFIG = """\
server:
    rundir: "{directory}"
    listen: {address}@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "{directory}"
log:
  - target: "{directory}/knot.log"
    any: info
template:
  - id: default
    storage: "{directory}"
    semantic-checks: off
    journal-content: none
    zonefile-sync: -1
    zonefile-load: whole
zone:
"""
ZONE = """\
$ORIGIN {origin}
$TTL {ttl}
@ SOA ns.knot.test. hostmaster.knot.test. {serial} 3600 600 86400 {negative}
@ NS ns.knot.test.
{records}
"""


def available() -> bool:
    """Return True when knotd is installed."""
    return pathlib.Path(KNOTD).exists()


class Knot:
    """knotd serving ``zones`` (name -> records as text) until the block ends.

    ``ttl`` is the default TTL, ``negative`` the SOA minimum, both in seconds.
    """

    def __init__(
        self,
        zones: Mapping[str, str],
        *,
        ttl: int = 60,
        negative: int = 60,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.zones = {"." if n in {"", "."} else n: t for n, t in zones.items()}
        self.zones.setdefault(".", "")
        self.address = address
        self.port = port or free_port()
        self._ttl, self._negative = ttl, negative
        self._serial = 1
        self._directory = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> str:
        """The server as ``[dns] servers`` takes it: ``127.0.0.1:PORT``."""
        return f"{self.address}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start knotd and wait until it answers for every zone."""
        self._directory = tempfile.mkdtemp(prefix="knot-")
        self._write()
        self._process = subprocess.Popen(
            [KNOTD, "-c", f"{self._directory}/knot.conf"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop knotd by its pid and remove its directory."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def update(self, zones: Mapping[str, str]) -> None:
        """Replace or add zones, and wait until the new ones are served."""
        self.zones.update(zones)
        self._serial += 1
        self._write()
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        self._wait()

    def _write(self) -> None:
        directory = pathlib.Path(self._directory)
        config = CONFIG.format(
            directory=directory, address=self.address, port=self.port
        )
        for number, (name, records) in enumerate(self.zones.items()):
            origin = name if name.endswith(".") else f"{name}."
            config += f'  - domain: "{origin}"\n    file: "{number}.zone"\n'
            text = ZONE.format(
                origin=origin,
                ttl=self._ttl,
                serial=self._serial,
                negative=self._negative,
                records=records,
            )
            (directory / f"{number}.zone").write_text(text)
        (directory / "knot.conf").write_text(config)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        for name in self.zones:
            while not self._serves(name):
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = pathlib.Path(self._directory, "knot.log")
                    text = log.read_text() if log.exists() else "no log"
                    raise RuntimeError(f"knotd does not serve {name}:\n{text}")
                time.sleep(POLL)

    def _serves(self, name: str) -> bool:
        question = dns.message.make_query(name, "SOA")
        try:
            reply = dns.query.udp(question, self.address, timeout=0.5, port=self.port)
        except (dns.exception.DNSException, OSError):
            return False
        found = [r.serial for rrset in reply.answer for r in rrset if rrset.rdtype == 6]
        return reply.rcode() == dns.rcode.NOERROR and found == [self._serial]
