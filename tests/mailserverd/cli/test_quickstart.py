"""``scripts/quickstart`` after its installation: what it starts, it also ends."""

from __future__ import annotations

import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from tests.lib import daemon, ports

SCRIPT = pathlib.Path(__file__).parents[3] / "scripts/first_message.py"
pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_daemon_too(number: int, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "scripts/first_message.py"
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    base = ports.free_base(daemon.BASES, daemon.OFFSETS)
    command = [sys.executable, str(script), "--port-base", str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            assert any("Ctrl-C stops it" in line for line in running.stdout)
            socket.create_connection(("127.0.0.1", base + 25), 10).close()
            refused_beside(command, tmp_path / "var/daemon.log")
        finally:
            running.send_signal(number)
        assert running.wait(60) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", base + 25), 10)
    ports.release(base)


def refused_beside(command: list[str], log: pathlib.Path) -> None:
    """A second call names the first one, and leaves its log alone."""
    before = log.read_bytes()
    second = subprocess.run(
        [*command, "--once"], capture_output=True, text=True, check=False
    )
    assert second.returncode == 1, second.stdout
    assert "run already?" in second.stderr
    assert log.read_bytes().startswith(before)
