"""Worker processes: any of them serves anybody, one may die, nobody notices."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import pathlib
import shutil
import signal
import statistics
import sys
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.lib import daemon
from tests.lib.clients import Imap, Jmap, Smtp, refuses
from tests.lib.ports import free_port
from tests.lib.waiting import eventually
from tests.lib.ws import WebSocketClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(180)
ALICE, BOB, PASSWORD = "alice@example.test", "bob@example.test", "workers pass"
SETTINGS = """
[server]
workers = 2
[inbound]
spf = false
dkim = false
dmarc = false
"""
BOTH = {"worker-0", "worker-1"}
MESSAGE = b"Subject: one\r\n\r\nbody\r\n"
IMPATIENT = """
import runpy, sys
from mailserverd.app import supervisor
supervisor.PING, supervisor.HANG = 0.5, 6.0
del sys.argv[:3]
runpy.run_module("mailserverd", run_name="__main__", alter_sys=True)
"""
MANY = 200  # connections among which each worker surely has one


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> daemon.Daemon:
    made = daemon.make(
        tmp_path_factory.mktemp("workers") / "ours",
        f"{ALICE}:{PASSWORD}",
        f"{BOB}:{PASSWORD}",
        shards=2,
    )
    made.override(SETTINGS)
    return made


@pytest.fixture
def ours(template: daemon.Daemon, tmp_path: pathlib.Path) -> Iterator[daemon.Daemon]:
    """A copy that runs, and ends without tracebacks."""
    made = template.copy(tmp_path / "ours")
    try:
        made.start()
        eventually(lambda: made.events("ready"))
        yield made
    finally:
        made.stop()
    assert "Traceback" not in made.log(), made.log()


def processes(ours: daemon.Daemon) -> dict[str, int]:
    """Return the ids of the processes that live, by name."""
    started = {e["name"]: e["pid"] for e in ours.events("process-started")}
    return {name: pid for name, pid in started.items() if daemon.alive(pid)}


def served_by(ours: daemon.Daemon, connect: Callable[[], Any]) -> tuple[str, Any]:
    """Log in; return by which worker, and the connection."""
    before = len(ours.events("login"))
    made = connect()
    return eventually(lambda: ours.events("login")[before:])[0]["process"], made


def one_in_each(
    ours: daemon.Daemon,
    connect: Callable[[], Any],
    stack: contextlib.ExitStack,
) -> dict[str, Any]:
    """Connect until each worker has one connection; return those two."""
    found: dict[str, Any] = {}
    for _ in range(MANY):
        name, made = served_by(ours, connect)
        stack.enter_context(made)
        found.setdefault(name, made)
        if set(found) == BOTH:
            return found
        time.sleep(0.01)
    raise AssertionError(f"all connections went to {set(found)}")


def idle(imap: Imap) -> Imap:
    imap.ok("SELECT INBOX")
    imap.begin("IDLE")
    assert imap.response().startswith(b"+")
    return imap


def deliver(ours: daemon.Daemon, to: str = ALICE) -> None:
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, to)[0] == 250


# --- serving -------------------------------------------------------------------------


def test_any_worker_serves_any_account(ours: daemon.Daemon) -> None:
    """Shards, directory and queue are owned by both, in turn."""
    count = 0
    while {e["process"] for e in ours.events("message-accepted")} != BOTH:
        deliver(ours, (ALICE, BOB)[count % 2])
        count += 1
        assert count < MANY
    for user, expected in ((ALICE, count - count // 2), (BOB, count // 2)):
        with contextlib.ExitStack() as stack:
            inboxes = one_in_each(
                ours, lambda who=user: Imap(ours.port(143), who, PASSWORD), stack
            )
            for more, imap in enumerate(inboxes.values()):
                assert len(imap.messages()) == expected + more
                assert imap.append(MESSAGE).startswith(b"OK")
    assert ours.command("storage", "check")["faults"] == []


def test_a_delivery_is_pushed_by_both_workers(ours: daemon.Daemon) -> None:
    """To IDLE and to WebSockets, whichever worker took the message."""
    with contextlib.ExitStack() as stack:
        idling = one_in_each(
            ours, lambda: idle(Imap(ours.port(143), ALICE, PASSWORD)), stack
        )
        smtp = stack.enter_context(Smtp(ours.port(25)))
        waits: dict[str, list[float]] = {name: [] for name in idling}
        for number in range(1, 26):
            assert smtp.message(MESSAGE, ALICE)[0] == 250
            began = time.monotonic()
            for name, imap in idling.items():
                while imap.response() != b"* %d EXISTS" % number:
                    pass
                waits[name].append(time.monotonic() - began)
    medians = {name: statistics.median(each) * 1000 for name, each in waits.items()}
    assert max(medians.values()) < 200, (
        medians
    )  # 20 on a machine that does nothing else


def test_websockets_are_told_of_what_another_worker_took(ours: daemon.Daemon) -> None:
    async def watch() -> list[float]:
        secret = base64.b64encode(f"{ALICE}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {secret}"}
        clients = [
            await WebSocketClient.open("127.0.0.1", ours.port(80), "/jmap/ws", headers)
            for _ in range(8)
        ]
        enable = {"@type": "WebSocketPushEnable", "dataTypes": ["Email"]}
        for client in clients:
            client.send(enable)
        waits = []
        for _ in range(10):
            # Every client has been told of the last one before the next one comes.
            await asyncio.sleep(0.15)
            await asyncio.to_thread(deliver, ours)
            began = time.monotonic()
            told = await asyncio.gather(*(client.receive() for client in clients))
            assert {one["@type"] for one in told} == {"StateChange"}
            waits.append(time.monotonic() - began)
        for client in clients:
            await client.hang_up()
        return waits

    waits = asyncio.run(watch())
    median = statistics.median(waits) * 1000
    assert median < 200


def test_searches_are_answered_by_any_worker(ours: daemon.Daemon) -> None:
    deliver(ours)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            jmap = stack.enter_context(Jmap(ours.port(80), ALICE, PASSWORD))
            assert len(jmap.ok("Email/query", filter={"text": "body"})["ids"]) == 1
    assert ours.events("index-failed") == []


# --- commands and metrics ------------------------------------------------------------


def test_commands_are_effective_in_every_worker(ours: daemon.Daemon) -> None:
    ours.command("account", "add", f"carol@example.test:{PASSWORD}")
    for _ in range(6):
        deliver(ours, "carol@example.test")
        with Imap(ours.port(143), "carol@example.test", PASSWORD):
            pass
    assert ours.command("queue", "list") == []
    ours.command("account", "remove", "carol@example.test")
    for _ in range(6):
        with Smtp(ours.port(25)) as smtp:
            assert smtp.message(MESSAGE, "carol@example.test")[0] == 550


def test_a_changed_password_ends_sessions_in_every_worker(ours: daemon.Daemon) -> None:
    with contextlib.ExitStack() as stack:
        sessions = one_in_each(
            ours, lambda: Imap(ours.port(143), ALICE, PASSWORD), stack
        )
        ours.command("account", "passwd", f"{ALICE}:another secret")
        for session in sessions.values():
            with contextlib.suppress(EOFError, OSError):
                assert not session.run("SELECT INBOX")[0].startswith(b"OK")
        for _ in range(6):
            with Imap(ours.port(143)) as imap:
                assert imap.run(f'LOGIN {ALICE} "{PASSWORD}"')[0].startswith(b"NO")


def test_metrics_are_those_of_all_processes(ours: daemon.Daemon) -> None:
    for _ in range(4):
        deliver(ours)
    where = f"http://127.0.0.1:{ours.port(9090)}"
    with urllib.request.urlopen(f"{where}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    puts = [line for line in lines if line.startswith("mailserverd_blob_puts_total{")]
    assert {line.split('"')[1] for line in puts} == {*BOTH, "background"}
    assert sum(float(line.split()[-1]) for line in puts) == 4
    helped = [line for line in lines if line.startswith("# HELP")]
    assert len(helped) == len(set(helped))
    for path in ("healthz", "readyz"):
        with urllib.request.urlopen(f"{where}/{path}", timeout=20) as answer:
            assert answer.status == 200


# --- limits --------------------------------------------------------------------------


def test_a_limit_per_client_holds_for_all_workers_together(
    ours: daemon.Daemon,
) -> None:
    ours.override("[limits]\nconnections_per_address = 10\n", "60-limit.toml")
    os.kill(ours.pid, signal.SIGHUP)
    eventually(lambda: ours.events("reloaded"))
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(Smtp(ours.port(25), greet=False)) for _ in range(16)
        ]
        assert sum(one.greeting[0] == 220 for one in held) == 10


def test_what_all_workers_store_is_counted_together(ours: daemon.Daemon) -> None:
    for _ in range(4):
        with Smtp(ours.port(25)) as client:
            assert client.message(MESSAGE, BOB)[0] == 250
    stats = ours.command("storage", "blobs", "stats")
    assert (stats["puts"], stats["records"]) == (4, 4)
    assert stats["syncs"] > 0  # those of each new segment among them


def test_guesses_at_all_workers_are_counted_together(ours: daemon.Daemon) -> None:
    """After six, at whatever worker, one has to wait."""
    refused: list[dict[str, Any]] = []
    for number in range(MANY):
        with Imap(ours.port(143)) as imap:
            imap.run(f'LOGIN {ALICE} "wrong {number}"')
        refused = ours.events("login-refused")
        if number >= 13 and {event["process"] for event in refused} == BOTH:
            break
    assert {event["process"] for event in refused} == BOTH
    assert sum(event["reason"] == "AUTH_FAILED" for event in refused[:14]) <= 8


# --- processes that die --------------------------------------------------------------


class Senders:
    """Deliver without pause; come again when the connection breaks."""

    def __init__(self, ours: daemon.Daemon) -> None:
        self.ours = ours
        self.promised: list[tuple[float, str]] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(n,)) for n in range(4)
        ]

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, name: int) -> None:
        number = 0
        while not self._over.is_set():
            with (
                contextlib.suppress(OSError, EOFError),
                Smtp(self.ours.port(25)) as smtp,
            ):
                while not self._over.is_set():
                    number += 1
                    token = f"m{name}.{number}."
                    raw = f"Subject: {token}\r\n\r\n".encode()
                    to = (ALICE, BOB)[number % 2]
                    if smtp.message(raw, to)[0] == 250:
                        self.promised.append((time.monotonic(), token))

    def wait_for(self, more: int) -> None:
        enough = len(self.promised) + more
        eventually(lambda: len(self.promised) >= enough)

    def longest_pause(self, since: float) -> float:
        """Return the longest time without an acknowledgement."""
        times = sorted(at for at, _ in self.promised if at >= since - 0.5)
        return max(b - a for a, b in itertools.pairwise(times))


def stored(ours: daemon.Daemon) -> list[str]:
    found = []
    for user in (ALICE, BOB):
        with Imap(ours.port(143), user, PASSWORD) as imap:
            found += [r.split(b"Subject: ")[1].split()[0] for r in imap.messages()]
    return [token.decode() for token in found]


@pytest.mark.parametrize("name", ["worker-0", "worker-1", "background"])
def test_a_process_that_is_killed_is_replaced(ours: daemon.Daemon, name: str) -> None:
    """Under load: nothing acknowledged is lost, nothing comes twice."""
    with Senders(ours) as senders:
        senders.wait_for(40)
        victim = processes(ours)[name]
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        senders.wait_for(40)
        eventually(lambda: processes(ours).get(name, victim) != victim)
        senders.wait_for(40)
    pause = senders.longest_pause(killed)
    assert pause < 5  # 2 on a machine that does nothing else
    (ended,) = ours.events("process-ended")
    assert (ended["name"], ended["status"]) == (name, -signal.SIGKILL)
    found = stored(ours)
    assert len(found) == len(set(found))
    assert {token for _, token in senders.promised} <= set(found)
    eventually(lambda: ours.command("account", "list"))
    assert ours.command("storage", "check")["faults"] == []


@pytest.mark.parametrize("name", ["worker-0", "worker-1", "background"])
def test_a_process_that_hangs_is_replaced(
    template: daemon.Daemon, tmp_path: pathlib.Path, name: str
) -> None:
    ours = template.copy(tmp_path / "ours")
    try:
        ours.start(wrapper=(sys.executable, "-c", IMPATIENT))
        eventually(lambda: ours.events("ready"))
        others = processes(ours)
        victim = others.pop(name)
        os.kill(victim, signal.SIGSTOP)
        eventually(lambda: processes(ours).get(name, victim) != victim)
        eventually(lambda: len(ours.events("serving")) > len(others) + 1)
        for to in (ALICE, BOB):
            deliver(ours, to)
        assert others.items() <= processes(ours).items()
        assert [e["name"] for e in ours.events("process-hangs")] == [name]
    finally:
        ours.stop()


def test_a_run_directory_that_is_removed_is_made_again(ours: daemon.Daemon) -> None:
    """At the latest when a process that ended is replaced."""
    before = processes(ours)
    shutil.rmtree(ours.home / "data" / "run")
    os.kill(before["worker-1"], signal.SIGKILL)
    eventually(lambda: len(ours.events("serving")) == 2 * len(before))
    assert not before.items() & processes(ours).items()
    for to in (ALICE, BOB):
        deliver(ours, to)


def test_one_that_dies_again_and_again_is_given_time(ours: daemon.Daemon) -> None:
    for times in range(1, 4):
        pid = eventually(lambda: processes(ours).get("worker-1"))
        os.kill(pid, signal.SIGKILL)
        eventually(lambda least=times: len(ours.events("process-ended")) >= least)
    assert [event["pause"] for event in ours.events("process-ended")] == [0, 0.5, 1]
    deliver(ours)


def test_without_their_supervisor_they_vanish(ours: daemon.Daemon) -> None:
    with Senders(ours) as senders:
        senders.wait_for(20)
        children = ours.children()
        assert len(children) >= 3
        ours.kill()
        eventually(lambda: not any(map(daemon.alive, children)), limit=2)
    ours.start()
    found = stored(ours)
    assert {token for _, token in senders.promised} <= set(found)
    assert ours.command("storage", "check")["faults"] == []


# --- reload and stop -----------------------------------------------------------------


def test_new_listeners_are_served_by_all_and_old_ones_by_none(
    ours: daemon.Daemon,
) -> None:
    first, second = free_port(), free_port()
    text = (ours.home / "mailserverd.toml").read_text()
    base = text[text.index("[[listener]]") : text.index("[[certificate]]")]
    more = '[[listener]]\nprotocol = "imap"\naddress = "127.0.0.1:{}"\ntls = "none"\n'
    with contextlib.ExitStack() as stack:
        before = one_in_each(
            ours, lambda: idle(Imap(ours.port(143), ALICE, PASSWORD)), stack
        )
        for done, port in enumerate((first, second), 1):
            ours.override(base + more.format(port), "60-more.toml")
            os.kill(ours.pid, signal.SIGHUP)
            eventually(lambda least=done: len(ours.events("reloaded")) >= least)
            one_in_each(ours, lambda where=port: Imap(where, ALICE, PASSWORD), stack)
        assert refuses(first)
        (ours.home / "tls/cert.pem").write_text("nothing\n")
        os.kill(ours.pid, signal.SIGHUP)
        eventually(lambda: ours.events("config-refused"))
        one_in_each(ours, lambda: Imap(second, ALICE, PASSWORD), stack)
        deliver(ours)
        for imap in before.values():  # open connections noticed nothing
            assert imap.response() == b"* 1 EXISTS"


def test_a_stop_lets_every_worker_finish(ours: daemon.Daemon) -> None:
    children = ours.children()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(Smtp(ours.port(25))) for _ in range(8)]
        for smtp in held:
            smtp.ok("MAIL FROM:<>")
            smtp.ok(f"RCPT TO:<{ALICE}>")
            smtp.ok("DATA")
        assert ours.process is not None
        ours.process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses(ours.port(25)))
        for smtp in held:
            smtp.send(MESSAGE + b".\r\n")
            assert smtp.reply()[0] == 250
        assert ours.process.wait(10) == 0
    assert not any(map(daemon.alive, children))
    assert not list((ours.home / "data").glob("*-wal"))
    ours.process = None
    ours.start()
    assert len(stored(ours)) == 8


def test_memory_is_shared(ours: daemon.Daemon) -> None:
    """Each process's fair share of what it uses (PSS), after some work."""
    for _ in range(20):
        deliver(ours)
        with Imap(ours.port(143), ALICE, PASSWORD) as imap:
            imap.messages()
    sizes = {}
    for name, pid in {**processes(ours), "supervisor": ours.pid}.items():
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        (size,) = (s for s in rollup.splitlines() if s.startswith("Pss:"))
        sizes[name] = int(size.split()[1]) / 1024
    assert max(sizes.values()) < 110, sizes
