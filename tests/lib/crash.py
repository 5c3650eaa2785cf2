"""What crash tests share: a daemon that sends to another server, and looks at both.

Everything is read back over IMAP, the queue runs empty, and ``storage check`` looks at
the rest.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import random
import re
from typing import TYPE_CHECKING, Any

from aiosmtpd.controller import Controller

from tests.lib import clients, daemon, instance
from tests.lib.databases import SQLITE
from tests.lib.knot import Knot
from tests.lib.ledger import Found, Ledger, State
from tests.lib.ports import free_port
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.lib.daemon import Daemon
    from tests.lib.databases import Engine
    from tests.lib.ledger import Key

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
def world(
    home: pathlib.Path, more: str = "", engine: Engine = SQLITE
) -> Iterator[tuple[Daemon, Sink]]:
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
            ours = instance.make(
                home / "ours", ACCOUNTS, PASSWORD, settings + more, engine
            )
            yield ours, sink
    finally:
        server.stop()


def crash(ours: Daemon) -> None:
    """kill -9; its helpers end by themselves."""
    helpers = ours.children()
    ours.kill()
    eventually(lambda: not any(map(daemon.alive, helpers)), "a helper lives on")


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


def look(ours: Daemon, ledger: Ledger, sink: Sink) -> None:
    """Start once more, read everything, stop in good order, check."""
    sink.life += 1
    ours.start()
    verify(ours, ledger, sink)
    assert ours.stop() == 0
    assert ours.command("storage", "check")["faults"] == []


def say(text: str) -> None:
    print(text)  # noqa: T201 - shown when the test fails, and with -s
