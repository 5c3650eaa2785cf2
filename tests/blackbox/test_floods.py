"""More than fits: clients that never read, requests that grow, messages like bombs.

Memory stays bounded, others are served meanwhile, and files stay the daemon's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.lib.clients import CORE, Imap, Smtp
from tests.lib.siege import (
    ALICE,
    BOB,
    CAROL,
    MALLORY,
    PASSWORDS,
    Smarthost,
    besieged,
    bounded,
    imap,
    jmap,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib import daemon
    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def far(engine: Engine) -> Iterator[Smarthost]:
    with Smarthost() as host:
        yield host


@pytest.fixture(scope="module")
def ours(
    engine: Engine, far: Smarthost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[daemon.Daemon]:
    with besieged(tmp_path_factory.mktemp("siege") / "ours", far, engine) as made:
        yield made


# --- memory and time ---------------------------------------------------------------


def flood(sock: socket.socket, data: bytes, most: int = 40_000_000) -> int:
    """Send without ever reading until nothing goes off any more; octets sent."""
    sock.setblocking(False)
    view, at, sent = memoryview(data), 0, 0
    while sent < most:
        _, writable, _ = select.select([], [sock], [], 0.7)
        if not writable:
            return sent
        try:
            count = sock.send(view[at:])
        except ConnectionError:
            return sent
        sent, at = sent + count, (at + count) % len(view)
    return sent


def test_imap_clients_that_never_read(ours: daemon.Daemon) -> None:
    raw = b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * 20_000
    with imap(ours) as client:
        client.ok("CREATE Large")
        for _ in range(5):
            assert client.append(raw, "Large").startswith(b"OK")
    for command in (
        b"x FETCH 1:* BODY[]\r\n",
        b'x LIST "" *\r\n',
        b"x NOOP\r\n",
        b"x FOO\r\n",
        b"x UID SEARCH TEXT x\r\n",
    ):
        with bounded(ours), imap(ours) as client:
            client.ok("SELECT Large")
            assert flood(client.socket, command * 5000) < 40_000_000, command


def test_smtp_and_http_clients_that_never_read(ours: daemon.Daemon) -> None:
    with bounded(ours), Smtp(ours.port(25)) as smtp:
        assert flood(smtp.socket, b"HELP\r\n" * 5000) < 40_000_000
    with bounded(ours), jmap(ours) as client:
        secret = client._headers["Authorization"].encode()
        request = (
            b"GET /jmap/session HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n\r\n"
            % secret
        )
        with socket.create_connection(("127.0.0.1", ours.port(80))) as sock:
            assert flood(sock, request * 500) < 40_000_000


def test_literals_before_login(ours: daemon.Daemon) -> None:
    with bounded(ours):
        for line in (
            b"a LOGIN {99999999}\r\n",
            b"a LOGIN {99999999+}\r\n",
            b"a LOGIN {4097}\r\n",
            b"a APPEND INBOX {99999999+}\r\n",
            b"a AUTHENTICATE PLAIN {99999999+}\r\n",
        ):
            with Imap(ours.port(143)) as client:
                client.send(line)
                reply = client.response()
                assert not reply.startswith(b"+"), (line, reply)
        with Imap(ours.port(143)) as client:
            client.send(b"a LOGIN {4096+}\r\n" + b"x" * 4096 + b" {4096+}\r\n")
            client.send((b"y" * 4096 + b" {4096+}\r\n") * 10 + b"y" * 4096 + b"\r\n")
            assert b"BAD" in client.response()


def echo(number: int) -> list[Any]:
    one = {"resultOf": str(number - 1), "name": "Core/echo", "path": ""}
    return ["Core/echo", {"#a": one, "#b": one} if number else {"a": "x"}, str(number)]


def test_answers_that_grow_by_themselves(ours: daemon.Daemon) -> None:
    """64 calls, each twice the one before."""
    with bounded(ours), jmap(ours) as client:
        calls = [echo(number) for number in range(64)]
        body = json.dumps({"using": [CORE], "methodCalls": calls}).encode()
        status, answer = client.post(body)
        assert status == 200
        assert len(answer) < 100_000_000
        assert json.loads(answer)["methodResponses"][-1][0] == "error"


def test_requests_beyond_their_limits(ours: daemon.Daemon) -> None:
    deep: Any = {"text": "x"}
    for _ in range(40):
        deep = {"operator": "NOT", "conditions": [deep]}
    wide = {"operator": "OR", "conditions": [{"text": f"x{n}"} for n in range(5000)]}
    with bounded(ours), jmap(ours) as client:
        for name, args in (
            ("Email/query", {"filter": deep}),
            ("Email/query", {"filter": wide}),
            ("Email/query", {"filter": {"text": "a " * 100_000}}),
            ("Email/query", {"sort": [{"property": "size"}] * 1000}),
            ("Email/get", {"ids": [f"e{n}" for n in range(1, 5000)]}),
            ("Email/set", {"destroy": [f"e{n}" for n in range(1, 5000)]}),
        ):
            [[said, answer]] = client.calls((name, args))
            assert said == "error", (name, answer)
        for body in (
            b"[" * 100_000 + b"]" * 100_000,
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b"[" + b"1," * 4_000_000 + b"1]",
            b'{"using":[],"methodCalls":[["Core/echo",{"a":'
            + b"9" * 5000
            + b"},'0']]}",
            json.dumps({"using": [CORE], "methodCalls": [echo(0)] * 65}).encode(),
        ):
            status, answer = client.post(body)
            assert status in {400, 413}, answer[:200]


def test_mailboxes_and_keywords_without_end(ours: daemon.Daemon) -> None:
    with imap(ours, CAROL) as client:
        for name in ("/".join("d" * 100), "x" * 1000, "a//b", "/", "a" * 300 + "/b"):
            assert client.run(f'CREATE "{name}"')[0].startswith((b"NO", b"BAD")), name
        assert client.append(b"Subject: x\r\n\r\nx\r\n").startswith(b"OK")
        client.ok("SELECT INBOX")
        words = " ".join(f"w{n}" for n in range(3000))
        assert client.run(f"STORE 1 +FLAGS ({words})")[0].startswith(b"NO")
        assert client.run(f"STORE 1 +FLAGS ({'k' * 300})")[0].startswith(b"NO")
        for start in range(0, 3000, 90):
            some = " ".join(f"w{n}" for n in range(start, start + 90))
            assert client.run(f"STORE 1 FLAGS.SILENT ({some})")[0].startswith(b"OK")
    with bounded(ours), imap(ours, CAROL) as client:
        client.ok("SELECT INBOX")


def test_what_does_not_fit_is_not_taken(ours: daemon.Daemon) -> None:
    ours.command("account", "quota", MALLORY, "300000")
    raw = b"Subject: x\r\n\r\n" + b"x" * 100_000 + b"\r\n"
    with imap(ours, MALLORY) as client:
        replies = [client.append(raw) for _ in range(6)]
        assert replies[0].startswith(b"OK")
        assert all(r.startswith(b"NO [OVERQUOTA]") for r in replies[3:]), replies
    with Smtp(ours.port(25)) as smtp:
        smtp.ok("MAIL FROM:<x@y.test> SIZE=100000")
        assert smtp.run(f"RCPT TO:<{MALLORY}>")[0] in {452, 552}
    with jmap(ours, MALLORY) as web:
        _, uploaded = web.upload(raw)
        boxes = web.ok("Mailbox/get")["list"]
        inbox = next(box["id"] for box in boxes if box["role"] == "inbox")
        email = {"blobId": uploaded["blobId"], "mailboxIds": {inbox: True}}
        answer = web.ok("Email/import", emails={"x": email})
        assert answer["notCreated"]["x"]["type"] == "overQuota", answer


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("fields", b"From: x@y.test\r\n" + b"A:b\r\n" * 700_000 + b"\r\nx\r\n"),
        ("a field", b"From: x@y.test\r\nA: " + b"b" * 4_000_000 + b"\r\n\r\nx\r\n"),
        (
            "addresses",
            b"From: x@y.test\r\nTo: " + b"u@x.test,\r\n " * 250_000 + b"\r\n\r\nx\r\n",
        ),
        ("comments", b"From: " + b"(" * 500_000 + b"\r\n\r\nx\r\n"),
        (
            "parts",
            b"From: x@y.test\r\nContent-Type: multipart/mixed; boundary=q\r\n\r\n"
            + b"--q\r\n\r\nx\r\n" * 100_000
            + b"--q--\r\n",
        ),
        (
            "nesting",
            b"From: x@y.test\r\n"
            + b"".join(
                b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n)
                for n in range(5000)
            )
            + b"\r\nx\r\n",
        ),
        (
            "messages in messages",
            b"From: x@y.test\r\n" + b"Content-Type: message/rfc822\r\n\r\n" * 5000,
        ),
    ],
)
def test_messages_that_are_bombs(ours: daemon.Daemon, name: str, raw: bytes) -> None:
    """Taken, and shown by every protocol, while others are served at once."""
    with bounded(ours), Other(ours) as other:
        with Smtp(ours.port(25)) as smtp:
            code, text = smtp.message(raw, BOB, sender=f"x{len(raw)}@y.test")
            assert code == 250, text
        with imap(ours, BOB) as client:
            client.ok("SELECT INBOX")
            client.ok(
                "FETCH * (ENVELOPE BODYSTRUCTURE BODY.PEEK[HEADER.FIELDS (To A)])"
            )
            client.ok("SEARCH HEADER A nothing")
        with jmap(ours, BOB) as web:
            sort = [{"property": "receivedAt", "isAscending": False}]
            [newest, *_] = web.ok("Email/query", sort=sort, limit=1)["ids"]
            properties = ["headers", "to", "preview", "header:A:asText:all"]
            for wanted in (["to", "subject"], properties, ["bodyStructure"]):
                said, answer = web.call("Email/get", ids=[newest], properties=wanted)
                assert said == "Email/get" or answer["type"] == "requestTooLarge"
    assert 0 < other.worst < 2.0, f"{name}: others waited for {other.worst:.2f} s"


@dataclasses.dataclass
class Other:
    """Somebody else, who reads all the while; ``worst`` is the longest wait."""

    ours: daemon.Daemon
    worst: float = 0.0

    def __enter__(self) -> Other:
        self._client = Imap(self.ours.port(143), CAROL, PASSWORDS[CAROL])
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _read(self) -> None:
        with self._client as client:
            while True:
                before = time.monotonic()
                client.ok("NOOP")
                self.worst = max(self.worst, time.monotonic() - before)
                if self._end.wait(0.02):
                    return


# --- the machine -----------------------------------------------------------------

ASK = """
import json, socket, sys, os
if len(sys.argv) > 2: os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b'{"command":"account.list"}\\n'); s.settimeout(10)
print(s.recv(65536).decode())
"""


def test_files_are_the_daemons_own(ours: daemon.Daemon) -> None:
    """With umask 0 in the shell that made and started it."""
    checked = 0
    for path in (ours.home / "data", *(ours.home / "data").rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert not mode & 0o077, (path, oct(mode))
        checked += 1
    assert checked >= 8
    key = ours.home / "tls" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for name in ("", "conf.d", "mailserverd.toml", "tls", "tls/cert.pem"):
        path = ours.home / name
        assert not path.stat().st_mode & 0o022, path


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_the_control_socket_obeys_its_owner_alone(ours: daemon.Daemon) -> None:
    path = ours.home / "data" / "control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def ask(*uid: str) -> str:
        command = [sys.executable, "-c", ASK, str(path), *uid]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    assert ALICE in ask()
    assert not ask("65534")
    opened = [path, *path.parents]
    modes = [one.stat().st_mode for one in opened]
    try:  # even where somebody made it reachable
        for one in opened:
            with contextlib.suppress(PermissionError):
                one.chmod(stat.S_IMODE(one.stat().st_mode) | 0o677)
        assert not ask("65534")
    finally:
        for one, mode in zip(opened, modes, strict=True):
            one.chmod(stat.S_IMODE(mode))
    assert ours.events("control-refused")


def test_private_keys_are_not_printed(ours: daemon.Daemon) -> None:
    for args in (
        ("domain", "list"),
        ("domain", "dns", "one.test"),
        ("account", "list"),
        ("config", "diff"),
        ("storage", "status"),
    ):
        printed = json.dumps(ours.command(*args))
        assert "PRIVATE" not in printed, args
        assert "$argon2" not in printed, args
