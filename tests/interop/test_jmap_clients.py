"""Strangers read, write, send, search and listen over JMAP against the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import smtplib
import ssl
import statistics
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from jmap import CreationRef
from jmap.auth import BasicAuth
from jmap.client import JMAPClient
from jmap.push import EventSourceClient, WebSocketClient

from tests.lib import daemon as daemons
from tests.lib.daemon import ROOT
from tests.lib.jmap import USING, basic
from tests.lib.ws import WebSocketClient as PlainWebSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.daemon import Daemon

HERE = pathlib.Path(__file__).parent
JAM = "0.13.1"
PASSWORD = "secret-1234"
USERS = ("lib", "listener", "jmapc", "jam", "plain", "bob")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = daemons.make(
        tmp_path_factory.mktemp("jmap-clients") / "md",
        *(f"{user}@example.test:{PASSWORD}" for user in USERS),
        domains=("example.test",),
    )
    with daemons.running(made):
        yield made


def url(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.port(80)}/.well-known/jmap"


def address(user: str) -> str:
    return f"{user}@example.test"


@contextlib.contextmanager
def client(daemon: Daemon, user: str) -> Iterator[JMAPClient]:
    auth = BasicAuth(address(user), PASSWORD)
    with JMAPClient.connect(url(daemon), auth=auth) as opened:
        yield opened


def deliver(daemon: Daemon, user: str, subject: str, body: str = "hello\n") -> None:
    """Send a message by SMTP."""
    with smtplib.SMTP("127.0.0.1", daemon.port(25)) as smtp:
        raw = f"From: s@example.net\nSubject: {subject}\n\n{body}"
        smtp.sendmail("s@example.net", [address(user)], raw)


# --- jmaplib ------------------------------------------------------------------------


def test_jmaplib_reads_writes_and_sends(daemon: Daemon) -> None:
    with client(daemon, "lib") as jmap:
        with jmap.batch() as batch:
            boxes = batch.mail.mailbox.get(ids=None)
            identities = batch.submission.identity.get(ids=None)
        roles = {box.role: box.id for box in boxes.result.items if box.role}
        identity = identities.result.items[0].id
        draft = {
            "mailboxIds": {roles["drafts"]: True},
            "keywords": {"$draft": True},
            "from": [{"name": "Lib", "email": address("lib")}],
            "to": [{"name": "Bob", "email": address("bob")}],
            "subject": "Grüße from jmaplib",
            "textBody": [{"partId": "t", "type": "text/plain"}],
            "bodyValues": {"t": {"value": "A very particular xylophone"}},
        }
        with jmap.batch() as batch:
            batch.mail.email.set(create={"draft": draft})
            sent = batch.submission.email_submission.set(
                create={
                    "send": {
                        "emailId": CreationRef("draft"),
                        "identityId": identity,
                    }
                },
                onSuccessUpdateEmail={
                    "#send": {
                        f"mailboxIds/{roles['drafts']}": None,
                        f"mailboxIds/{roles['sent']}": True,
                        "keywords/$draft": None,
                    }
                },
            )
        assert sent.result.created
        with jmap.batch() as batch:
            found = batch.mail.email.query(filter={"inMailbox": roles["sent"]})
            emails = batch.mail.email.get(
                ids=found.ref_ids(), properties=["subject", "keywords", "threadId"]
            )
        [email] = emails.result.items
        assert email.subject == "Grüße from jmaplib"
        assert not email.keywords
    with client(daemon, "bob") as jmap:
        with jmap.batch() as batch:
            found = batch.mail.email.query(filter={"text": "xylophone"})
            emails = batch.mail.email.get(
                ids=found.ref_ids(),
                properties=["from", "bodyValues", "textBody"],
                fetchTextBodyValues=True,
            )
            snippets = batch.mail.search_snippet.get(
                filter={"text": "xylophone"}, email_ids=found.ref_ids()
            )
        [email] = emails.result.items
        assert email.from_[0].email == address("lib")
        [value] = email.body_values.values()
        assert value.value.strip() == "A very particular xylophone"
        assert "<mark>xylophone</mark>" in snippets.result.items[0].preview


def test_jmaplib_follows_changes(daemon: Daemon) -> None:
    with client(daemon, "lib") as jmap:
        with jmap.batch() as batch:
            boxes = batch.mail.mailbox.get(ids=None)
            emails = batch.mail.email.get(ids=[])
        inbox = next(b.id for b in boxes.result.items if b.role == "inbox")
        since = emails.result.state
        raw = b"Subject: imported\r\n\r\nbody\r\n"
        blob = jmap.upload(raw, content_type="message/rfc822")
        assert jmap.download(blob.blob_id) == raw
        with jmap.batch() as batch:
            batch.mail.email.import_(
                emails={"k": {"blobId": blob.blob_id, "mailboxIds": {inbox: True}}}
            )
            parsed = batch.mail.email.parse(
                blob_ids=[blob.blob_id], properties=["subject"]
            )
            changes = batch.mail.email.changes(since_state=since)
        assert parsed.result.parsed[blob.blob_id].subject == "imported"
        [new] = changes.result.created
        with jmap.batch() as batch:
            batch.mail.email.set(update={new: {"keywords/$flagged": True}})
            gone = batch.mail.email.set(destroy=[new])
            after = batch.mail.email.changes(since_state=changes.result.new_state)
        assert gone.result.destroyed == [new]
        assert after.result.destroyed == [new]


def test_jmaplib_listens_to_the_event_source(daemon: Daemon) -> None:
    with client(daemon, "listener") as jmap:
        heard: list[Any] = []
        source = EventSourceClient(jmap, types=["Email", "Mailbox"], ping=30)

        def listen() -> None:
            heard.append(next(source.events()))

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        until = time.monotonic() + 20
        while listener.is_alive() and time.monotonic() < until:
            deliver(daemon, "listener", "listen")
            listener.join(0.5)
        [change] = heard
        [types] = change.changed.values()
        assert set(types) == {"Email", "Mailbox"}
        assert source.last_event_id


def test_jmaplib_speaks_over_a_websocket(daemon: Daemon) -> None:
    with client(daemon, "listener") as jmap, WebSocketClient(jmap) as socket:
        with socket.batch() as batch:
            boxes = batch.mail.mailbox.get(ids=None)
        assert {b.role for b in boxes.result.items} >= {"inbox", "sent"}
        socket.enable_push(["Email"])
        with socket.batch() as batch:
            batch.mail.mailbox.get(ids=[])
        deliver(daemon, "listener", "pushed")
        change = next(iter(socket.notifications()))
        [types] = change.changed.values()
        assert set(types) == {"Email"}
        assert socket.push_state


def test_jmaplib_conformance(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "jmap.testing.conformance", url(daemon)]
    done = subprocess.run(
        [*command, "--user", address("lib"), "--password", PASSWORD],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    supported = {
        line.split()[-1]
        for line in done.stdout.splitlines()
        if line.startswith("supported")
    }
    assert supported == {
        "urn:ietf:params:jmap:core",
        "urn:ietf:params:jmap:mail",
        "urn:ietf:params:jmap:submission",
        "urn:ietf:params:jmap:websocket",
    }
    assert "advertised, not modelled" not in done.stdout


# --- jmapc (https only) ---------------------------------------------------------------

JMAPC = """
import json, sys
from jmapc import Client, Comparator, Email, EmailAddress, EmailBodyPart, EmailBodyValue
from jmapc import EmailQueryFilterCondition, EmailSubmission, Ref
from jmapc.methods import (
    CoreEcho, EmailGet, EmailQuery, EmailSet, EmailSubmissionSet, IdentityGet,
    MailboxGet, MailboxQuery, ThreadGet,
)
host, user, password = sys.argv[1:]
client = Client.create_with_password(host, user, password)
echo = client.request(CoreEcho(data=dict(hello="world")))
boxes = {box.role: box.id for box in client.request(MailboxGet(ids=None)).data}
identity = client.request(IdentityGet()).data[0].id
results = client.request([
    EmailSet(create=dict(draft=Email(
        mail_from=[EmailAddress(name="C", email=user)],
        to=[EmailAddress(email=user)],
        subject="From jmapc",
        keywords={"$draft": True},
        mailbox_ids={boxes["drafts"]: True},
        body_values=dict(body=EmailBodyValue(value="a quiet marimba")),
        text_body=[EmailBodyPart(part_id="body", type="text/plain")],
    ))),
    EmailSubmissionSet(
        on_success_destroy_email=["#send"],
        create=dict(send=EmailSubmission(email_id="#draft", identity_id=identity)),
    ),
])
found = client.request([
    EmailQuery(filter=EmailQueryFilterCondition(text="marimba"),
               sort=[Comparator(property="receivedAt", is_ascending=False)], limit=5),
    EmailGet(ids=Ref("/ids"), properties=["threadId", "subject"]),
    ThreadGet(ids=Ref("/list/*/threadId")),
])
print(json.dumps(dict(
    echo=echo.data["hello"],
    submitted=results[1].response.created["send"].id,
    subjects=[email.subject for email in found[1].response.data],
    threads=len(found[2].response.data),
)))
"""


def test_jmapc(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    certificate = ssl.get_server_certificate(("127.0.0.1", daemon.port(443)))
    trusted = tmp_path / "ca.pem"
    trusted.write_text(certificate)
    host = f"127.0.0.1:{daemon.port(443)}"
    done = subprocess.run(
        [sys.executable, "-c", JMAPC, host, address("jmapc"), PASSWORD],
        env={"REQUESTS_CA_BUNDLE": str(trusted), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["echo"] == "world"
    assert said["submitted"].startswith("s")
    assert said["subjects"] == ["From jmapc"]
    assert said["threads"] == 1


# --- jmap-jam -------------------------------------------------------------------------


def node_modules() -> pathlib.Path:
    """Return where jmap-jam is, installing it on first use.

    In a place of its own: npm removes what another test installed beside it.
    """
    place = ROOT / "build" / "jmap-jam"
    if not (place / "node_modules" / "jmap-jam").is_dir():
        place.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--no-save", "--no-package-lock", "--no-audit"]
        subprocess.run(
            [*npm, "--no-fund", "--prefix", str(place), f"jmap-jam@{JAM}"],
            check=True,
            capture_output=True,
            timeout=120,
        )
    return place / "node_modules"


def test_jmap_jam(daemon: Daemon) -> None:
    script = str(HERE / "jmap_jam_session.mjs")
    done = subprocess.run(
        ["node", script, str(node_modules()), url(daemon), address("jam"), PASSWORD],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["username"] == address("jam")
    assert {"inbox", "drafts", "sent", "trash"} <= set(said["roles"])
    assert said["undo"] == "final"
    assert said["subject"] == "From jmap-jam"
    assert said["value"].strip() == "strawberry"
    assert said["blob"] == "jam jar"
    assert 'filename="jar.txt"' in said["disposition"]


# --- a plain WebSocket ----------------------------------------------------------------


async def _pushes(daemon: Daemon, count: int) -> list[float]:
    """Return how long each StateChange took from the answer 250."""
    socket = await PlainWebSocket.open(
        "127.0.0.1",
        daemon.port(80),
        "/jmap/ws",
        {"Authorization": basic(address("plain"), PASSWORD)},
    )
    socket.send({"@type": "WebSocketPushEnable", "dataTypes": ["EmailDelivery"]})
    socket.send({"@type": "Request", "using": USING, "methodCalls": [], "id": "on"})
    assert (await socket.receive())["requestId"] == "on"
    took = []
    for number in range(count):
        await asyncio.to_thread(deliver, daemon, "plain", f"Number {number}")
        started = time.perf_counter()
        change = await socket.receive()
        took.append(time.perf_counter() - started)
        assert change["@type"] == "StateChange"
        await asyncio.sleep(0.12)  # beyond the pause between two pushes
    await socket.close()
    return took


def test_a_delivery_is_pushed_at_once(daemon: Daemon) -> None:
    took = asyncio.run(_pushes(daemon, 15))
    assert statistics.median(took) < 0.05
