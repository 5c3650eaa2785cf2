"""A running mailserverd on loopback, made by ``init``, stopped by its pid.

Its databases are on the engine that the maker names (``tests.lib.databases``).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

from mailserverd.app.offline import offline
from mailserverd.settings import read
from tests.lib import ports
from tests.lib.databases import SQLITE, Engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "mailserverd")
OFFSETS = (24, 25, 587, 465, 143, 993, 80, 443, 9090)
BASES = range(10000, 23600, 7)
START_LIMIT = 30.0
LAYOUT = "40-databases.toml"
WORKERS = os.environ.get("MAILSERVERD_TEST_WORKERS", "")
"""Where set, daemons run in so many worker processes."""


@dataclasses.dataclass
class Daemon:
    """One instance under ``home``; ``process`` is None while it is stopped."""

    home: pathlib.Path
    base: int
    process: subprocess.Popen[bytes] | None = None
    engine: Engine = SQLITE
    shards: int = 1

    @property
    def config(self) -> str:
        return str(self.home / "mailserverd.toml")

    @property
    def log_path(self) -> pathlib.Path:
        return self.home / "daemon.log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def port(self, offset: int) -> int:
        return self.base + offset

    def override(self, text: str, name: str = "50-test.toml") -> None:
        """Write a drop-in; effective at the next start or SIGHUP."""
        (self.home / "conf.d" / name).write_text(text)

    def lay_out(self) -> None:
        """Write down where the databases are."""
        self.override(self.engine.layout(self.home, self.shards), LAYOUT)

    def copy(self, home: pathlib.Path) -> Daemon:
        """Copy a stopped instance, its databases too."""
        shutil.copytree(self.home, home)
        self.engine.copy(self.home, home)
        made = Daemon(home, self.base, engine=self.engine, shards=self.shards)
        made.lay_out()
        return made

    def start(self, *, wrapper: tuple[str, ...] = (), wait: bool = True) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*wrapper, *COMMAND, "run", "--config", self.config],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.home,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    def wait_ready(self) -> None:
        assert self.process is not None
        until = time.monotonic() + START_LIMIT
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"daemon exited: {self.log()}")
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port(25)), 0.5) as sock,
            ):
                sock.settimeout(2)
                if sock.recv(4) == b"220 ":
                    assert self.engine.serves(self.home), "runs on another engine"
                    return
            time.sleep(0.02)
        raise RuntimeError(f"daemon does not listen: {self.log()}")

    def stop(self, how: int = signal.SIGTERM, limit: float = 20.0) -> int:
        """Signal the process by pid and return its exit status."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        if process.poll() is None:
            process.send_signal(how)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def children(self) -> list[int]:
        """Return the processes that it started, by whichever thread, and theirs."""
        return _descendants(self.pid)

    def log(self) -> str:
        return (
            self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        )

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Return the log's events, all or those of one name."""
        found = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [e for e in found if not name or e.get("event") == name]

    def command(self, *args: str, check: bool = True, stdin: str = "") -> Any:
        """Run a ``mailserverd`` command with --json; return its parsed output."""
        done = subprocess.run(
            [*COMMAND, *args, "--config", self.config, "--json"],
            capture_output=True,
            text=True,
            input=stdin,
            check=False,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        if check and done.returncode:
            raise RuntimeError(f"{args}: {done.returncode} {done.stdout} {done.stderr}")
        return json.loads(done.stdout) if done.stdout.strip() else None


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it ends just now
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Return True for a process that has not ended."""
    with contextlib.suppress(OSError):
        return ") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    return False


def make(
    home: pathlib.Path,
    *accounts: str,
    hostname: str = "mail.example.test",
    domains: tuple[str, ...] = (),
    engine: Engine = SQLITE,
    shards: int = 1,
) -> Daemon:
    """Run ``init`` for accounts given as ``address:password``."""
    made = Daemon(home, ports.free_base(BASES, OFFSETS), engine=engine, shards=shards)
    weakref.finalize(made, ports.release, made.base)
    usual = shards == 1 and engine.in_files
    names = ["--hostname", hostname]
    if usual:
        names += [arg for d in domains for arg in ("--domain", d)]
        names += [arg for a in accounts for arg in ("--account", a)]
    subprocess.run(
        [*COMMAND, "init", str(home), *names, "--port-base", str(made.base)],
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if not usual:
        owners = [account.partition(":")[0] for account in accounts]
        named = [*domains, *(owner.rpartition("@")[2] for owner in owners)]
        asyncio.run(_fill(made, list(dict.fromkeys(named)), accounts))
    if WORKERS:
        made.override(f"[server]\nworkers = {WORKERS}\n", "30-workers.toml")
    return made


async def _fill(made: Daemon, domains: Sequence[str], accounts: Sequence[str]) -> None:
    """Put an instance on its engine, and add domains and accounts there."""
    for path in (made.home / "data").glob("*.db*"):
        path.unlink()
    made.lay_out()
    async with offline(read(made.config)) as run:
        await run("storage.migrate", {}, _quiet)
        for domain in domains:
            await run("domain.add", {"domain": domain}, _quiet)
        for account in accounts:
            address, _, password = account.partition(":")
            args = {"address": address, "password": password}
            await run("account.add", args, _quiet)


def _quiet(_: dict[str, Any]) -> None:
    return None


@contextlib.contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Start the daemon, and stop it whatever happens."""
    try:
        daemon.start()
        yield daemon
    finally:
        if daemon.process is not None:
            daemon.stop()
