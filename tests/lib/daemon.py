"""A running mailserverd on loopback, made by ``init``, stopped by its pid."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

from tests.lib import ports

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "mailserverd")
OFFSETS = (24, 25, 587, 465, 143, 993, 80, 443, 9090)
BASES = range(10000, 23600, 7)
START_LIMIT = 30.0


@dataclasses.dataclass
class Daemon:
    """One instance under ``home``; ``process`` is None while it is stopped."""

    home: pathlib.Path
    base: int
    process: subprocess.Popen[bytes] | None = None

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
        """Return the processes that it started, by whichever of its threads."""
        tasks = pathlib.Path(f"/proc/{self.pid}/task").iterdir()
        texts = [(task / "children").read_text() for task in tasks]
        return [int(child) for text in texts for child in text.split()]

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
) -> Daemon:
    """Run ``init`` for accounts given as ``address:password``."""
    base = ports.free_base(BASES, OFFSETS)
    names = [arg for a in accounts for arg in ("--account", a)]
    names += [arg for d in domains for arg in ("--domain", d)]
    names += ["--hostname", hostname]
    subprocess.run(
        [
            *COMMAND,
            "init",
            str(home),
            "--hostname",
            hostname,
            *names,
            "--port-base",
            str(base),
        ],
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    made = Daemon(home, base)
    weakref.finalize(made, ports.release, base)
    return made


@contextlib.contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Start the daemon, and stop it whatever happens."""
    try:
        daemon.start()
        yield daemon
    finally:
        if daemon.process is not None:
            daemon.stop()
