"""A real MTA beside us: mail both ways by MX, our signature verified by opendkim."""

from __future__ import annotations

import base64
import dataclasses
import email
import email.message
import email.policy
import json
import os
import pathlib
import random
import signal
import smtplib
import subprocess
import tempfile
import urllib.request
from typing import TYPE_CHECKING, Any

import imapclient
import pytest

from tests.lib import daemon
from tests.lib.clients import refuses, unverified
from tests.lib.knot import Knot
from tests.lib.ports import free_port
from tests.lib.postfix import Postfix
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="ports 25 and 53 and users need root"),
    pytest.mark.timeout(120),
]
BOB, PASSWORD = "bob@example.test", "interop pass"
CAROL = "carol@peer.test"
PEER = """
myhostname = mx.peer.test
mydestination =
virtual_mailbox_domains = peer.test
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = inline:{{ {{ carol@peer.test = carol/ }} }}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{uid}
virtual_minimum_uid = 1
smtpd_recipient_restrictions = reject_unlisted_recipient, permit_mynetworks, reject
smtpd_milters = inet:127.0.0.1:{milter}
milter_default_action = tempfail
smtp_tls_security_level = may
smtp_bind_address = {address}
"""
DKIM = """
Mode v
Socket inet:{port}@127.0.0.1
AuthservID mx.peer.test
AlwaysAddARHeader yes
RequireSafeKeys no
Background no
UserID root
ResolverConfiguration {resolver}
"""
UNBOUND = """
server:
    do-not-query-localhost: no
    local-zone: "test" nodefault
    module-config: iterator
stub-zone:
    name: "example.test"
    stub-addr: {names}
"""


@dataclasses.dataclass
class World:
    ours: daemon.Daemon
    peer: Postfix
    dns: Knot

    def inbox(self) -> list[email.message.EmailMessage]:
        client = imapclient.IMAPClient("127.0.0.1", self.ours.port(143), ssl=False)
        client.login(BOB, PASSWORD)
        client.select_folder("INBOX", readonly=True)
        uids = client.search()
        found = [
            email.message_from_bytes(data[b"BODY[]"], policy=email.policy.default)
            for data in client.fetch(uids, ["BODY.PEEK[]"]).values()
        ]
        client.logout()
        return found  # type: ignore[return-value]

    def carol(self) -> list[email.message.EmailMessage]:
        files = sorted((self.peer.home / "mail/carol/new").glob("*"))
        return [
            email.message_from_bytes(f.read_bytes(), policy=email.policy.default)
            for f in files
        ]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    # Not pytest's directory: Postfix's users must be able to walk to their files.
    with tempfile.TemporaryDirectory(prefix="interop-") as name:
        pathlib.Path(name).chmod(0o755)
        yield from build(pathlib.Path(name))


def build(home: pathlib.Path) -> Iterator[World]:
    net = f"127.{random.randrange(64, 200)}.{random.randrange(256)}"
    mine, theirs, names = f"{net}.1", f"{net}.2", f"{net}.3"
    ours = daemon.make(home / "ours", f"{BOB}:{PASSWORD}", hostname="mx.example.test")
    records = ours.command("domain", "dns", "example.test")["records"]
    keys = [r for r in records if "_domainkey" in r["name"]]
    zone = f'@ MX 10 mx\nmx A {mine}\n@ TXT "v=spf1 ip4:127.0.0.0/8 -all"\n'
    zone += "".join(f"{r['name']}. {r['type']} {r['value']}\n" for r in keys)
    peer_zone = f'@ MX 10 mx\nmx A {theirs}\n@ TXT "v=spf1 ip4:{theirs} -all"\n'
    dns = Knot({"example.test": zone, "peer.test": peer_zone}, address=names, port=53)
    listeners = "".join(
        f'[[listener]]\nprotocol = "{p}"\naddress = "{a}"\ntls = "{t}"\n'
        for p, a, t in (
            ("smtp", f"{mine}:25", "starttls"),
            ("smtp", f"127.0.0.1:{ours.port(25)}", "starttls"),
            ("submission", f"127.0.0.1:{ours.port(587)}", "starttls"),
            ("imap", f"127.0.0.1:{ours.port(143)}", "starttls"),
            ("http", f"127.0.0.1:{ours.port(80)}", "none"),
        )
    )
    ours.override(f'{listeners}[dns]\nservers = ["{names}"]\n')
    milter = free_port()
    (home / "opendkim.conf").write_text(
        DKIM.format(port=milter, resolver=home / "unbound.conf")
    )
    (home / "unbound.conf").write_text(UNBOUND.format(names=names))
    uid = pathlib.Path("/var/mail").stat().st_gid
    settings = PEER.format(home=home / "peer", uid=uid, milter=milter, address=theirs)
    (home / "peer/mail").mkdir(parents=True)
    os.chown(home / "peer/mail", uid, uid)
    peer = Postfix(home / "peer", settings, address=theirs, port=25, nameserver=names)
    opendkim = subprocess.Popen(
        ["/usr/sbin/opendkim", "-f", "-x", str(home / "opendkim.conf")]
    )
    try:
        dns.start()
        peer.start()
        eventually(lambda: not refuses(milter))
        with daemon.running(ours):
            yield World(ours, peer, dns)
    finally:
        peer.stop()
        opendkim.send_signal(signal.SIGTERM)
        opendkim.wait(10)
        dns.stop()


def submit(world: World, to: str, subject: str) -> None:
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = BOB, to, subject
    message.set_content("Grüße von hier.\n")
    with smtplib.SMTP("127.0.0.1", world.ours.port(587), timeout=30) as smtp:
        smtp.starttls(context=unverified())
        smtp.login(BOB, PASSWORD)
        smtp.send_message(message)


def test_we_send_by_mx_and_opendkim_verifies_the_signature(world: World) -> None:
    submit(world, CAROL, "to the peer")
    found = eventually(
        lambda: [m for m in world.carol() if m["Subject"] == "to the peer"]
    )
    results = " ".join(found[0].get_all("Authentication-Results"))
    assert "dkim=pass" in results
    assert "dkim=fail" not in results
    assert found[0]["Message-ID"]
    assert found[0]["Date"]
    eventually(lambda: world.ours.command("queue", "list") == [])


def test_postfix_sends_to_us_by_mx_and_spf_passes(world: World) -> None:
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = CAROL, BOB, "from the peer"
    message["Message-ID"] = "<one@peer.test>"
    message.set_content("Hallo\n")
    with smtplib.SMTP(world.peer.address, 25, timeout=30) as smtp:
        smtp.sendmail(CAROL, [BOB], message.as_bytes())
    found = eventually(
        lambda: [m for m in world.inbox() if m["Subject"] == "from the peer"]
    )
    results = " ".join(found[0].get_all("Authentication-Results"))
    assert "mx.example.test" in results
    assert "spf=pass" in results
    assert found[0]["Return-Path"] == f"<{CAROL}>"
    assert "mx.peer.test" in found[0].get_all("Received")[0]
    assert "ESMTPS" in found[0].get_all("Received")[0]


def jmap(world: World, *calls: list[Any]) -> list[dict[str, Any]]:
    """Make Bob's calls, each with his account; return the arguments of the answers."""
    base = f"http://127.0.0.1:{world.ours.port(80)}/jmap"
    login = base64.b64encode(f"{BOB}:{PASSWORD}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{base}/session", headers=headers), timeout=30
    ) as answer:
        account = next(iter(json.load(answer)["accounts"]))
    names = ("core", "mail", "submission")
    document = {
        "using": [f"urn:ietf:params:jmap:{name}" for name in names],
        "methodCalls": [
            [name, {"accountId": account} | args, str(number)]
            for number, (name, args) in enumerate(calls)
        ],
    }
    request = urllib.request.Request(
        f"{base}/api", json.dumps(document).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [args for _, args, _ in json.load(answer)["methodResponses"]]


def test_a_message_is_read_and_its_answer_reaches_the_sender(world: World) -> None:
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = CAROL, BOB, "Lunch?"
    message["Message-ID"] = "<lunch@peer.test>"
    message.set_content("At noon?\n")
    with smtplib.SMTP(world.peer.address, 25, timeout=30) as smtp:
        smtp.sendmail(CAROL, [BOB], message.as_bytes())
    eventually(lambda: [m for m in world.inbox() if m["Subject"] == "Lunch?"])
    boxes, identities, found = jmap(
        world,
        ["Mailbox/get", {"ids": None}],
        ["Identity/get", {"ids": None}],
        ["Email/query", {"filter": {"text": "noon"}}],
    )
    sent = next(box["id"] for box in boxes["list"] if box["role"] == "sent")
    [asked] = found["ids"]
    answer = {
        "mailboxIds": {sent: True},
        "from": [{"email": BOB}],
        "to": [{"email": CAROL}],
        "subject": "Re: Lunch?",
        "inReplyTo": ["lunch@peer.test"],
        "references": ["lunch@peer.test"],
        "textBody": [{"partId": "1"}],
        "bodyValues": {"1": {"value": "Gern, um zwölf."}},
    }
    identity = identities["list"][0]["id"]
    sending = {"create": {"s": {"emailId": "#a", "identityId": identity}}}
    created, submitted, _, emails = jmap(
        world,
        ["Email/set", {"create": {"a": answer}}],
        ["EmailSubmission/set", sending],
        ["Email/set", {"update": {asked: {"keywords/$answered": True}}}],
        ["Email/get", {"ids": [asked, "#a"], "properties": ["threadId"]}],
    )
    assert created["created"]
    assert submitted["created"]
    assert len({shown["threadId"] for shown in emails["list"]}) == 1
    [came] = eventually(
        lambda: [m for m in world.carol() if m["Subject"] == "Re: Lunch?"]
    )
    assert came["In-Reply-To"] == "<lunch@peer.test>"
    assert came.get_content().strip() == "Gern, um zwölf."
    assert "dkim=pass" in " ".join(came.get_all("Authentication-Results"))
    with imapclient.IMAPClient("127.0.0.1", world.ours.port(143), ssl=False) as imap:
        imap.login(BOB, PASSWORD)
        imap.select_folder("INBOX", readonly=True)
        assert len(imap.search(["ANSWERED", "SUBJECT", "Lunch?"])) == 1


def test_a_refused_recipient_comes_back_as_one_report(world: World) -> None:
    submit(world, "nobody@peer.test", "to nobody")

    def reports() -> list[email.message.EmailMessage]:
        return [m for m in world.inbox() if m.get_content_type() == "multipart/report"]

    eventually(reports)
    (report,) = reports()
    assert report["Return-Path"] == "<>"
    status = next(
        p for p in report.walk() if p.get_content_type() == "message/delivery-status"
    )
    text = status.as_string()
    assert "nobody@peer.test" in text
    assert "Action: failed" in text
    assert "5.1.1" in text
    eventually(lambda: world.ours.command("queue", "list") == [])


def test_a_dead_peer_is_retried_until_it_is_back(world: World) -> None:
    world.peer.stop()
    submit(world, CAROL, "to a sleeping peer")

    def deferred() -> bool:
        rows = world.ours.command("queue", "list")
        return bool(rows) and rows[0]["recipients"][0]["attempts"] > 0

    eventually(deferred)
    world.peer.start()
    world.ours.command("queue", "retry", "all")
    eventually(lambda: [m for m in world.carol() if "sleeping" in m["Subject"]])
    eventually(lambda: world.ours.command("queue", "list") == [])
