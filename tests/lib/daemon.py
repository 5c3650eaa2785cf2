"""A running mailserverd on loopback, made by ``init``, stopped by its pid."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "mailserverd")
OFFSETS = (24, 25, 587, 465, 143, 993, 80, 443, 9090)
START_LIMIT = 30.0


RESERVED = pathlib.Path(tempfile.gettempdir()) / "mailserverd-test-ports"
_locks: dict[int, list[int]] = {}  # by base


def free_base() -> int:
    """Return a port base of which every port in use here is free, and reserve them.

    Test runs beside this one respect the reservation until ``release`` or our end.
    """
    for _ in range(200):
        # all below 32768, where the ports of outgoing connections begin
        base = random.randrange(10000, 23600, 7)
        if _reserve(base):
            if all(_free(base + offset) for offset in OFFSETS):
                return base
            release(base)
    raise RuntimeError("no free ports")


def _reserve(base: int) -> bool:
    RESERVED.mkdir(exist_ok=True)
    _locks[base] = []
    for offset in OFFSETS:
        path = RESERVED / str(base + offset)
        _locks[base].append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            fcntl.flock(_locks[base][-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            release(base)
            return False
    return True


def release(base: int) -> None:
    """Let others have the ports."""
    for descriptor in _locks.pop(base, ()):
        os.close(descriptor)


def _free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


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
            self.wait_ready()

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


def make(
    home: pathlib.Path,
    *accounts: str,
    hostname: str = "mail.example.test",
    domains: tuple[str, ...] = (),
) -> Daemon:
    """Run ``init`` for accounts given as ``address:password``."""
    base = free_base()
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
    weakref.finalize(made, release, base)
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
