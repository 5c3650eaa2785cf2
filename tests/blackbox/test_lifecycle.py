"""Start, service manager, stop: what a supervisor and its clients see of them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.lib import activation, daemon
from tests.lib.clients import Imap, Jmap, Smtp, Stream, refuses
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(120)
ALICE, PASSWORD = "alice@example.test", "lifecycle pass"
NO_POLICY = "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
MESSAGE = b"Subject: one\r\n\r\nbody\r\n"


@pytest.fixture(scope="module")
def template(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> daemon.Daemon:
    ours = daemon.make(
        tmp_path_factory.mktemp("lifecycle") / "ours",
        f"{ALICE}:{PASSWORD}",
        engine=engine,
    )
    ours.override(NO_POLICY)
    return ours


@pytest.fixture
def ours(template: daemon.Daemon, tmp_path: pathlib.Path) -> Iterator[daemon.Daemon]:
    """A copy that is not started; stopped at the end, without tracebacks."""
    made = template.copy(tmp_path / "ours")
    try:
        yield made
    finally:
        made.stop()
    assert "Traceback" not in made.log(), made.log()


# --- starting ------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_data_is_refused(ours: daemon.Daemon) -> None:
    ours.start()
    second = subprocess.run(
        [*daemon.COMMAND, "run", "--config", ours.config],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(daemon.ROOT)},
    )
    assert second.returncode == os.EX_TEMPFAIL
    assert second.stderr.splitlines()[-1] == (
        f"mailserverd: {ours.home}/data is in use by another mailserverd process"
    )
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, ALICE)[0] == 250
    assert ours.command("account", "list")[0]["address"] == ALICE


def test_a_taken_port_is_named_and_nothing_else_is_left_behind(
    ours: daemon.Daemon,
) -> None:
    with socket.create_server(("127.0.0.1", ours.port(993))):
        ours.start(wait=False)
        assert ours.process is not None
        assert ours.process.wait(30) == os.EX_TEMPFAIL
        last = ours.log().splitlines()[-1]
        address = f"127.0.0.1:{ours.port(993)}"
        assert (
            last == f"mailserverd: cannot listen on {address}: Address already in use"
        )
    ours.start()


def test_the_control_socket_is_for_its_owner_alone(ours: daemon.Daemon) -> None:
    ours.start()
    data = ours.home / "data"
    assert data.stat().st_mode & 0o777 == 0o700
    control = data / "control.sock"
    assert control.stat().st_mode & 0o777 == 0o600
    for path in data.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_stale_control_socket_is_no_obstacle(ours: daemon.Daemon) -> None:
    ours.start()
    ours.kill()
    assert (ours.home / "data/control.sock").exists()
    assert ours.command("account", "list")[0]["address"] == ALICE
    ours.start()
    assert ours.command("account", "list")[0]["address"] == ALICE


# --- the service manager -------------------------------------------------------------


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(15)

    def close(self) -> None:
        self._socket.close()

    def next(self, *ignored: str) -> str:
        """Return the next state that is not one of those ignored."""
        while (state := self._socket.recv(4096).decode()) in ignored:
            pass
        return state


def test_the_service_manager_is_told(
    ours: daemon.Daemon, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with contextlib.closing(manager):
        ours.start(wait=False)
        alive = "WATCHDOG=1"
        assert manager.next(alive).split("\n")[0] == "READY=1"
        with Smtp(ours.port(25)):  # listening before it said so
            pass
        assert [manager.next() for _ in range(3)] == [alive] * 3
        assert ours.process is not None
        ours.process.send_signal(signal.SIGHUP)
        assert manager.next(alive).split("\n")[0] == "RELOADING=1"
        assert manager.next(alive).split("\n")[0] == "READY=1"
        ours.override("[inbound]\nspf = 7\n", "60-wrong.toml")
        ours.process.send_signal(signal.SIGHUP)
        assert manager.next(alive).split("\n")[0] == "RELOADING=1"
        assert manager.next(alive).split("\n")[0] == "READY=1"
        (ours.home / "conf.d/60-wrong.toml").unlink()
        ours.process.send_signal(signal.SIGTERM)
        assert manager.next(alive).split("\n")[0] == "STOPPING=1"
        assert ours.stop() == 0


def test_sockets_come_from_the_service_manager(ours: daemon.Daemon) -> None:
    """Connections wait while nobody runs; a restart closes no port."""
    listeners = "".join(
        f'[[listener]]\nprotocol = "{name}"\naddress = "systemd:{name}"\ntls = "none"\n'
        for name in ("smtp", "imap")
    )
    # passwords without TLS are for sockets that are known to be on loopback
    ours.override(f"{listeners}{NO_POLICY}[limits]\nplaintext_auth = false\n")
    sockets = [
        f"{n}=127.0.0.1:{ours.port(p)}" for n, p in (("smtp", 25), ("imap", 143))
    ]
    ours.start(wrapper=(sys.executable, activation.__file__, *sockets, "--"))
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, ALICE)[0] == 250
    with Imap(ours.port(143)) as imap:
        assert imap.greeting.startswith(b"* OK")
        assert imap.run(f"LOGIN {ALICE} x")[0].startswith(b"NO [PRIVACYREQUIRED]")
    assert ours.stop() == 0


def test_a_socket_that_was_not_passed_is_named(ours: daemon.Daemon) -> None:
    ours.override(
        '[[listener]]\nprotocol = "smtp"\naddress = "systemd:smtp"\n'
        "[limits]\nplaintext_auth = false\n"
    )
    ours.start(wait=False)
    assert ours.process is not None
    assert ours.process.wait(30) == os.EX_TEMPFAIL
    assert "FileDescriptorName=smtp" in ours.log().splitlines()[-1]


# --- stopping ------------------------------------------------------------------------


def test_sigterm_finishes_what_is_under_way(ours: daemon.Daemon) -> None:
    """A message within its data is answered; those who wait are told; exit 0."""
    ours.start()
    web = Jmap(ours.port(80), ALICE, PASSWORD)
    with (
        Smtp(ours.port(25)) as busy,
        Smtp(ours.port(25)) as idle,
        Smtp(ours.port(25), greet=False) as new,
        Imap(ours.port(143), ALICE, PASSWORD) as idling,
        Imap(ours.port(143)) as stranger,
        web,
    ):
        web.session()
        idling.ok("SELECT INBOX")
        idling.begin("IDLE")
        assert idling.response().startswith(b"+")
        busy.ok("MAIL FROM:<>")
        busy.ok(f"RCPT TO:<{ALICE}>")
        busy.ok("DATA")
        busy.send(MESSAGE)
        assert ours.process is not None
        ours.process.send_signal(signal.SIGTERM)
        for waiting in (idle, new):
            code, text = waiting.reply()
            assert (code, text[:5]) == (421, "4.3.2"), text
            assert waiting.rest() == b""
        for waiting in (idling, stranger):
            assert waiting.response().startswith(b"* BYE")
            assert waiting.rest() == b""
        eventually(lambda: refuses(ours.port(25)))
        assert refuses(ours.port(143))
        busy.send(b"more\r\n.\r\n")
        assert busy.reply()[0] == 250
        code, text = busy.reply()
        assert (code, text[:5]) == (421, "4.3.2"), text
        assert ours.process.wait(5) == 0
    ours.process = None
    ours.start()
    with Imap(ours.port(143), ALICE, PASSWORD) as imap:
        (raw,) = imap.messages()
    assert raw.endswith(MESSAGE + b"more\r\n")


def test_sigterm_does_not_wait_for_ever(ours: daemon.Daemon) -> None:
    """Nor for one that began its message and says no more."""
    ours.override("[server]\ndrain = 1\n", "60-drain.toml")
    ours.start()
    with Smtp(ours.port(25)) as stuck, Stream(ours.port(465), tls=True):
        stuck.ok("MAIL FROM:<>")
        stuck.ok(f"RCPT TO:<{ALICE}>")
        stuck.ok("DATA")
        stuck.send(MESSAGE)
        assert ours.process is not None
        began = time.monotonic()
        ours.process.send_signal(signal.SIGTERM)
        assert ours.process.wait(8) == 0
        assert time.monotonic() - began > 0.9
        assert b"250" not in stuck.rest()
    ours.process = None
    ours.start()
    with Imap(ours.port(143), ALICE, PASSWORD) as imap:
        assert imap.messages() == []


def deliver_until_told_to_leave(port: int, name: int, known: set[str]) -> set[str]:
    """Send messages one after the other; return what was acknowledged."""
    promised: set[str] = set()
    with contextlib.suppress(OSError, EOFError), Smtp(port) as smtp:
        for number in range(100_000):
            token = f"m{name}.{number}."
            known.add(token)
            code, _ = smtp.message(f"Subject: {token}\r\n\r\n".encode(), ALICE)
            if code != 250:
                break
            promised.add(token)
    return promised


def test_a_stop_and_reloads_under_load_lose_nothing(ours: daemon.Daemon) -> None:
    """What was acknowledged is there, once."""
    ours.start()
    known: set[str] = set()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        clients = [
            pool.submit(deliver_until_told_to_leave, ours.port(25), name, known)
            for name in range(4)
        ]
        assert ours.process is not None
        for enough in (20, 40, 60, 80):
            eventually(lambda least=enough: len(known) > least)
            ours.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(ours.events("reloaded")) > 0)
        assert ours.stop() == 0
        promised = set().union(*(client.result() for client in clients))
    assert len(promised) >= 40
    ours.start()
    with Imap(ours.port(143), ALICE, PASSWORD) as imap:
        stored = [raw.split(b"Subject: ")[1].split()[0] for raw in imap.messages()]
    found = [token.decode() for token in stored]
    assert len(found) == len(set(found))
    assert promised <= set(found) <= known
    assert ours.command("storage", "check")["faults"] == []


def search(ours: daemon.Daemon) -> None:
    """Find a message by its text, which needs helpers."""
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, ALICE)[0] == 250
    with Jmap(ours.port(80), ALICE, PASSWORD) as jmap:
        assert len(jmap.ok("Email/query", filter={"text": "body"})["ids"]) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_nothing_behind(ours: daemon.Daemon, how: int) -> None:
    ours.start()
    search(ours)
    children = ours.children()
    assert children
    assert ours.stop(how) == 0
    assert all(refuses(ours.port(offset)) for offset in daemon.OFFSETS)
    assert not list((ours.home / "data").glob("*-wal"))
    eventually(lambda: not any(map(daemon.alive, children)))


def test_kill_takes_its_helpers_with_it(ours: daemon.Daemon) -> None:
    """kill -9 leaves no process that holds ports or locks."""
    ours.start()
    search(ours)
    children = ours.children()
    assert children
    ours.kill()
    eventually(lambda: not any(map(daemon.alive, children)))
    ours.start()


def test_idle_connections_are_many(ours: daemon.Daemon) -> None:
    """Stopping with hundreds of them is quick."""
    ours.start()
    held = [
        socket.create_connection(("127.0.0.1", ours.port(offset)), 10)
        for offset in (25, 143, 80)
        for _ in range(150)
    ]
    try:
        for sock in held[:300]:
            assert sock.recv(10)
        began = time.monotonic()
        assert ours.stop() == 0
        assert time.monotonic() - began < 5
        for sock in held[:300]:
            sock.settimeout(5)
            while select.select([sock], [], [], 5)[0] and sock.recv(4096):
                pass
    finally:
        for sock in held:
            sock.close()
