"""kill -9 under load: what was answered holds, once and byte for byte.

CRASH_ROUNDS is the number of crashes (30).  After every fifteenth everything is read
back over IMAP, the queue runs empty, and ``storage check`` looks at the rest.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import os
import random
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller

from tests.lib import clients, daemon, instance
from tests.lib.knot import Knot
from tests.lib.ledger import Found, Ledger, State
from tests.lib.load import Load
from tests.lib.ports import free_port
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.lib.daemon import Daemon
    from tests.lib.ledger import Key

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "30"))
EVERY = 15  # rounds between looks at everything
PASSWORD = "crash"
ACCOUNTS = [f"user{n}@example.test" for n in range(8)]
PER_DESTINATION = 5  # attempts under way at once
SETTINGS = """
[outbound]
port = {port}
per_destination = {each}
[dns]
servers = ["{dns}"]
"""
_FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")


class Sink:
    """The other server: keeps (token, life of ours) of what it took."""

    def __init__(self) -> None:
        self.life = 0
        self.taken: list[tuple[str, int]] = []
        self.bodies: dict[str, str] = {}

    async def handle_MAIL(
        self, _server: Any, _session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        """Note who speaks while it is there: its data may be read after its death."""
        envelope.life = self.life
        envelope.mail_from = address
        envelope.mail_options += options
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        token = instance.TOKEN.search(envelope.content)
        assert token is not None
        body = envelope.content.partition(b"\r\n\r\n")[2]
        self.bodies[token[1].decode()] = hashlib.sha256(body).hexdigest()
        self.taken.append((token[1].decode(), envelope.life))
        return "250 OK"


@contextlib.contextmanager
def world(tmp_path: pathlib.Path) -> Iterator[tuple[Daemon, Sink]]:
    """A daemon on four shards, a server that it sends to, and the DNS."""
    sink = Sink()
    server = Controller(sink, hostname="127.0.0.1", port=free_port())
    zone = "@ MX 10 mx\nmx A 127.0.0.1\n"
    server.start()
    try:
        with Knot({"elsewhere.test": zone}) as dns:
            settings = SETTINGS.format(
                port=server.port, each=PER_DESTINATION, dns=dns.server
            )
            yield instance.make(tmp_path / "ours", ACCOUNTS, PASSWORD, settings), sink
    finally:
        server.stop()


# --- crashing -----------------------------------------------------------------------


def crash(ours: Daemon) -> None:
    """kill -9; its helpers end by themselves."""
    helpers = ours.children()
    ours.kill()
    eventually(lambda: not any(map(daemon.alive, helpers)), "a helper lives on")


async def one_round(ours: Daemon, load: Load, rng: random.Random) -> None:
    load.ledger.heard = asyncio.Event()
    heard = asyncio.create_task(load.ledger.heard.wait())
    running = asyncio.create_task(load.run(rng.getrandbits(40)))
    await asyncio.wait({running, heard}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait({running}, timeout=rng.uniform(0, 1))
    if running.done():
        running.result()  # a client failed before the crash: say why
        raise AssertionError("the load ended by itself")
    await asyncio.to_thread(crash, ours)
    await asyncio.wait_for(running, 30)
    heard.cancel()


def crash_while_starting(ours: Daemon, sink: Sink, rng: random.Random) -> None:
    """Recovery may be cut off like all else; the queue goes on right after it."""
    sink.life += 1
    ours.start(wait=False)
    time.sleep(rng.uniform(0.2, 1.2))  # a random moment, not a wait
    crash(ours)


# --- looking ------------------------------------------------------------------------


def stored(ours: Daemon) -> dict[Key, list[Found]]:
    """Return the messages in all mailboxes of all accounts."""
    found: dict[Key, list[Found]] = collections.defaultdict(list)
    for account in ACCOUNTS:
        with clients.Imap(ours.port(143), account, PASSWORD) as imap:
            for line in imap.ok('LIST "" *'):
                name = line.split()[-1].decode().strip('"')
                for flags, raw in messages(imap, name):
                    token = instance.TOKEN.search(raw)
                    assert token is not None, raw[:300]
                    one = Found(State(name, flags), raw)
                    found[token[1].decode(), account].append(one)
    return found


def messages(imap: clients.Imap, name: str) -> Iterator[tuple[frozenset[str], bytes]]:
    imap.ok(f"EXAMINE {name}")
    for response in imap.ok("UID FETCH 1:* (FLAGS BODY.PEEK[])"):
        if b" FETCH (" not in response:
            continue
        head, _, rest = response.partition(b"}\r\n")
        size = int(head.rpartition(b"{")[2])
        flags = _FLAGS.search(head + rest[size:])
        assert flags is not None, head
        names = frozenset(flags[1].decode().split()) - {"\\Recent"}
        yield names, rest[:size]


def verify(ours: Daemon, ledger: Ledger, sink: Sink) -> None:
    """Look at everything; acceptances are applied, the queue sent, after a restart."""
    eventually(lambda: ledger.promised <= set(sink.bodies), "sent, and never arrived")
    eventually(lambda: not ours.command("queue", "list"), "the queue does not empty")
    found: dict[Key, list[Found]] = {}

    def complete() -> bool:
        found.clear()
        found.update(stored(ours))
        return not ledger.missing(found)

    with contextlib.suppress(AssertionError):  # what is missing is said below
        eventually(complete, "")
    assert ledger.check(found) == []
    check_sent(ledger, sink)
    check_search(ours, ledger)


def check_search(ours: Daemon, ledger: Ledger) -> None:
    """The index is whole, or made whole: what is there is found."""
    there = [key for key, state in ledger.states.items() if state and not state.deleted]
    for token, account in random.sample(there, min(20, len(there))):
        with clients.Jmap(ours.port(80), account, PASSWORD) as jmap:
            found = jmap.ok("Email/query", filter={"text": token})
            assert len(found["ids"]) == 1, (token, account)


def check_sent(ledger: Ledger, sink: Sink) -> None:
    """At least once, and once more only where a crash came in between."""
    times = collections.Counter(sink.taken)
    assert {key: n for key, n in times.items() if n > 1} == {}, "twice in one life"
    assert set(sink.bodies) <= ledger.asked
    assert {t for t, body in sink.bodies.items() if body != ledger.bodies[t]} == set()
    lives = collections.defaultdict(list)
    for token, life in sink.taken:
        lives[token].append(life)
    again = collections.Counter(life for seen in lives.values() for life in seen[1:])
    assert {life: n for life, n in again.items() if n > PER_DESTINATION} == {}


@pytest.mark.timeout(60 * max(ROUNDS, 10))
def test_what_was_answered_holds_after_kill_9(tmp_path: pathlib.Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.SystemRandom().getrandbits(32)))
    say(f"CRASH_SEED={seed}")
    rng, ledger = random.Random(seed), Ledger()
    with world(tmp_path) as (ours, sink):
        load = Load(ours, ACCOUNTS, PASSWORD, ledger)
        try:
            for number in range(1, ROUNDS + 1):
                if rng.random() < 0.2:
                    crash_while_starting(ours, sink, rng)
                sink.life += 1
                ours.start()
                asyncio.run(one_round(ours, load, rng))
                if number % EVERY == 0 or number == ROUNDS:
                    look(ours, ledger, sink)
                    say(f"{number} crashes, answered: {dict(ledger.answers)}")
        finally:
            if ours.process is not None:
                ours.stop(signal.SIGKILL)
    assert ledger.answers.total() > 10 * ROUNDS
    assert len(ledger.answers) == 9 or ROUNDS < EVERY, "every way was taken"


def look(ours: Daemon, ledger: Ledger, sink: Sink) -> None:
    """Start once more, read everything, stop in good order, check."""
    sink.life += 1
    ours.start()
    verify(ours, ledger, sink)
    assert ours.stop() == 0
    assert ours.command("storage", "check")["faults"] == []


def say(text: str) -> None:
    print(text)  # noqa: T201 - shown when the test fails, and with -s
