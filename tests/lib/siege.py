"""A daemon under attack: accounts, clients, what it sent, what it logged, its size."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import pathlib
import threading
from typing import TYPE_CHECKING, Any

from tests.lib import daemon
from tests.lib.clients import CORE, MAIL, Imap, Jmap, Smtp
from tests.lib.sink import Sink
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.databases import Engine
    from tests.lib.sink import Taken

ALICE, BOB, CAROL = "alice@one.test", "bob@one.test", "carol@two.test"
MALLORY = "mallory@two.test"
PASSWORDS = {
    ALICE: "alice's own-Secret",
    BOB: "bob's own-Secret",
    CAROL: "carol's own-Secret",
    MALLORY: "mallory's own-Secret",
}
GUESS = "a-wrong-Guess"
SUBMISSION = "urn:ietf:params:jmap:submission"
FAR = "somebody@far.test"
GROWTH = 80  # MiB that the daemon may grow by under any one attack


class Smarthost:
    """A sink in a thread: everything that leaves the daemon ends here."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.sink = Sink("PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "SIZE 99999999")

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with self.sink:
            self._ready.set()
            await self._end.wait()

    def __enter__(self) -> Smarthost:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def message(self, subject: str) -> Taken:
        """Wait for the message with a subject."""
        line = f"Subject: {subject}\r\n".encode()
        found: list[Taken] = []

        def came() -> bool:
            found[:] = [one for one in self.sink.taken if line in one.data]
            return bool(found)

        eventually(came)
        return found[0]


@contextlib.contextmanager
def besieged(
    home: pathlib.Path, smarthost: Smarthost, engine: Engine
) -> Iterator[daemon.Daemon]:
    """Run a daemon of four accounts in two domains; look at its log in the end."""
    before = os.umask(0)  # the worst that a shell may hand down
    try:
        made = daemon.make(
            home,
            *(f"{user}:{password}" for user, password in PASSWORDS.items()),
            domains=("one.test", "two.test"),
            hostname="mx.one.test",
            engine=engine,
        )
        made.override(
            '[server]\nlog_level = "debug"\n'
            "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
            f'[outbound]\nsmarthost = "[127.0.0.1]:{smarthost.sink.port}"\n'
        )
        made.start()
    finally:
        os.umask(before)
    try:
        yield made
        assert made.process is not None
        assert made.process.poll() is None, "the daemon died"
    finally:
        made.stop()
    check_log(made.log())


def check_log(log: str) -> None:
    """One JSON object per line, whatever came; no secrets, no crashes."""
    for line in log.split("\n")[:-1]:
        event = json.loads(line)
        assert event["level"] != "error", line
        assert event["event"] != "forged", line
        assert "Traceback" not in line, line
    for secret in (*PASSWORDS.values(), GUESS, "PRIVATE KEY"):
        for form in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")):
            assert form not in log, "a secret in the log"


@contextlib.contextmanager
def submitting(ours: daemon.Daemon, user: str = ALICE) -> Iterator[Smtp]:
    with Smtp(ours.port(465), tls=True) as smtp:
        assert smtp.login(user, PASSWORDS[user])[0] == 235
        yield smtp


@contextlib.contextmanager
def imap(ours: daemon.Daemon, user: str = ALICE) -> Iterator[Imap]:
    with Imap(ours.port(143), user, PASSWORDS[user]) as client:
        yield client


@contextlib.contextmanager
def jmap(ours: daemon.Daemon, user: str = ALICE) -> Iterator[Account]:
    with Account(ours.port(80), user, PASSWORDS[user]) as client:
        client.session()
        yield client


class Account(Jmap):
    """JMAP with requests as they stand."""

    def post(self, body: bytes) -> tuple[int, bytes]:
        return self.request("POST", "/jmap/api", body, "application/json")

    def calls(self, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
        listed = [
            [name, {"accountId": self.account, **args}, str(n)]
            for n, (name, args) in enumerate(calls)
        ]
        using = [CORE, MAIL, SUBMISSION]
        body = json.dumps({"using": using, "methodCalls": listed}).encode()
        status, answer = self.post(body)
        assert status == 200, answer[:500]
        return [response[:2] for response in json.loads(answer)["methodResponses"]]

    def imported(self, raw: bytes) -> str:
        """Put a message, as it stands, into Drafts."""
        boxes = self.ok("Mailbox/get")["list"]
        drafts = next(box["id"] for box in boxes if box["role"] == "drafts")
        _, uploaded = self.upload(raw)
        email = {"blobId": uploaded["blobId"], "mailboxIds": {drafts: True}}
        answer = self.ok("Email/import", emails={"x": email})
        return str(answer["created"]["x"]["id"])

    def submitted(self, email: str, sender: str, *to: str, **more: Any) -> Any:
        """Send it; returns None, or the SetError."""
        [[_, listed]] = self.calls(("Identity/get", {}))
        envelope = {
            "mailFrom": {"email": sender, **more},
            "rcptTo": [{"email": one} for one in to],
        }
        create = {
            "identityId": listed["list"][0]["id"],
            "emailId": email,
            "envelope": envelope,
        }
        [[_, answer]] = self.calls(("EmailSubmission/set", {"create": {"s": create}}))
        return (answer["notCreated"] or {}).get("s")


def resident(ours: daemon.Daemon) -> int:
    """Return the daemon's largest resident size so far, in MiB."""
    text = pathlib.Path(f"/proc/{ours.pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


@contextlib.contextmanager
def bounded(ours: daemon.Daemon) -> Iterator[None]:
    """The daemon does not grow much meanwhile, and serves others after it."""
    pathlib.Path(f"/proc/{ours.pid}/clear_refs").write_text("5")
    before = resident(ours)
    yield
    with jmap(ours, BOB) as client:
        client.ok("Mailbox/get")
    grown = resident(ours) - before
    assert grown < GROWTH, f"{grown} MiB more"


def basic(ours: daemon.Daemon, user: str, password: str) -> tuple[int, bytes]:
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    client = http.client.HTTPConnection("127.0.0.1", ours.port(80), timeout=20)
    client.request("GET", "/jmap/session", headers={"Authorization": f"Basic {secret}"})
    response = client.getresponse()
    answer = response.status, response.read()
    client.close()
    return answer
