"""Records in a real DNS decide what the daemon takes, and where and how it sends."""

from __future__ import annotations

import dataclasses
import email
import email.policy
from typing import TYPE_CHECKING, Any

import pytest

from tests.lib import daemon, knot
from tests.lib.clients import Imap, Smtp
from tests.lib.siege import Smarthost
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.lib.databases import Engine

pytestmark = [
    pytest.mark.skipif(not knot.available(), reason="knot is not installed"),
    pytest.mark.timeout(120),
]
ALICE, PASSWORD = "alice@example.test", "world pass"
FORGED = '@ TXT "v=spf1 -all"\n_dmarc TXT "v=DMARC1; p={}"\n'
LISTED = "1.0.0.127 A 127.0.0.2\n"
ZONES = {
    "reject.test": FORGED.format("reject"),
    "quarantine.test": FORGED.format("quarantine"),
    "good.test": '@ TXT "v=spf1 ip4:127.0.0.1 -all"\n_dmarc TXT "v=DMARC1; p=reject"\n',
    "list.test": "",
    "null.test": "@ MX 0 .\n",
    "implicit.test": "@ A 127.0.0.1\n",
    "second.test": "@ MX 20 up\n@ MX 10 down\ndown A 127.9.9.9\nup A 127.0.0.1\n",
}
STATUS = {"message/delivery-status", "message/global-delivery-status"}  # RFC 6533
# As in production, but for MX hosts on loopback.
SETTINGS = """
[dns]
servers = ["{dns}"]
timeout = 2
[inbound]
accept_temperror = false
dnsbl = ["list.test"]
[outbound]
port = {port}
"""


@dataclasses.dataclass
class World:
    ours: daemon.Daemon
    dns: knot.Knot
    peer: Smarthost

    def receive(self, sender: str, subject: str) -> tuple[int, str]:
        with Smtp(self.ours.port(25)) as smtp:
            raw = f"From: {sender}\r\nSubject: {subject}\r\n\r\nx\r\n".encode()
            return smtp.message(raw, ALICE, sender=sender)

    def submit(
        self,
        to: str,
        subject: str,
        more: bytes = b"",
        body: bytes = b"x\r\n",
        parameters: str = "",
    ) -> None:
        raw = f"From: {ALICE}\r\nTo: {to}\r\nSubject: {subject}\r\n".encode() + more
        with Smtp(self.ours.port(465), tls=True) as smtp:
            assert smtp.login(ALICE, PASSWORD)[0] == 235
            answer = smtp.message(
                raw + b"\r\n" + body, to, sender=ALICE, parameters=parameters
            )
            assert answer[0] == 250, answer

    def mail(self, mailbox: str = "INBOX") -> list[bytes]:
        with Imap(self.ours.port(143), ALICE, PASSWORD) as imap:
            return imap.messages(mailbox)

    def report_of(self, to: str) -> str:
        """Wait for the failure report of a recipient; return its status part."""
        found: list[str] = []

        def came() -> bool:
            parsed = [
                email.message_from_bytes(raw, policy=email.policy.default)
                for raw in self.mail()
            ]
            found[:] = [
                part.as_string()
                for message in parsed
                for part in message.walk()
                if part.get_content_type() in STATUS and f"; {to}\n" in part.as_string()
            ]
            return bool(found)

        eventually(came)
        (status,) = found
        assert "Action: failed" in status
        return status

    def left(self, to: str) -> dict[str, Any] | None:
        for row in self.ours.command("queue", "list"):
            for recipient in row["recipients"]:
                if recipient["address"] == to:
                    found: dict[str, Any] = recipient
                    return found
        return None


@pytest.fixture(scope="module")
def world(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: pathlib.Path = tmp_path_factory.mktemp("world")
    peer = Smarthost()
    peer.sink.features = ("PIPELINING", "SIZE 1000000")
    with peer, knot.Knot(ZONES, ttl=0, negative=0) as dns:
        ours = daemon.make(home / "ours", f"{ALICE}:{PASSWORD}", engine=engine)
        ours.override(SETTINGS.format(dns=dns.server, port=peer.sink.port))
        with daemon.running(ours):
            yield World(ours, dns, peer)
        assert "Traceback" not in ours.log(), ours.log()


# --- what comes in -------------------------------------------------------------------


def test_a_forged_author_is_refused_with_the_reason(world: World) -> None:
    code, text = world.receive("x@reject.test", "forged")
    assert (code, text[:6]) == (550, "5.7.1 ")
    assert "DMARC" in text
    assert "reject.test" in text
    assert not [m for m in world.mail() if b"forged" in m]


def test_quarantine_is_the_junk_folder(world: World) -> None:
    assert world.receive("x@quarantine.test", "doubtful")[0] == 250
    (found,) = (m for m in world.mail("Junk") if b"Subject: doubtful" in m)
    assert b"dmarc=fail" in found
    assert not [m for m in world.mail() if b"doubtful" in m]


def test_an_aligned_pass_is_the_inbox(world: World) -> None:
    assert world.receive("x@good.test", "welcome")[0] == 250
    (found,) = (m for m in world.mail() if b"Subject: welcome" in m)
    assert b"spf=pass" in found
    assert b"dmarc=pass" in found


def test_a_listed_client_is_refused_while_it_is_listed(world: World) -> None:
    world.dns.update({"list.test": LISTED})
    try:
        code, text = world.receive("x@good.test", "listed")
    finally:
        world.dns.update({"list.test": ""})
    assert (code, text[:6]) == (550, "5.7.1 ")
    assert "list.test" in text
    assert world.receive("x@good.test", "not any more")[0] == 250


def test_without_dns_a_message_is_deferred(world: World) -> None:
    world.dns.stop()
    try:
        code, text = world.receive("x@reject.test", "unknown")
    finally:
        world.dns.start()
    assert (code, text[:2]) == (451, "4."), text
    assert not [m for m in world.mail() if b"Subject: unknown" in m]


# --- what goes out -------------------------------------------------------------------


def test_a_refused_sender_is_named_as_it_is(world: World) -> None:
    """A reply begins with a capital letter: never with somebody's address."""
    other = "bob@example.test"
    raw = f"From: {other}\r\n\r\nx\r\n".encode()
    with Smtp(world.ours.port(465), tls=True) as smtp:
        assert smtp.login(ALICE, PASSWORD)[0] == 235
        for sender in (other, ALICE):  # in the envelope, in the header
            code, text = smtp.message(raw, ALICE, sender=sender)
            assert (code, text[:6]) == (553, "5.7.1 ")
            assert other in text


def test_a_null_mx_takes_no_mail(world: World) -> None:
    world.submit("x@null.test", "null")
    assert "5.1.10" in world.report_of("x@null.test")
    assert world.left("x@null.test") is None


def test_a_domain_that_does_not_exist_takes_no_mail(world: World) -> None:
    world.submit("x@nowhere.test", "nowhere")
    assert "5.1.2" in world.report_of("x@nowhere.test")


def test_an_address_stands_in_for_a_missing_mx(world: World) -> None:
    world.submit("x@implicit.test", "implicit")
    assert world.peer.message("implicit").rcpt == ["RCPT TO:<x@implicit.test>"]


def test_the_next_host_gets_it_when_the_first_is_down(world: World) -> None:
    world.submit("x@second.test", "second host")
    assert world.peer.message("second host").rcpt == ["RCPT TO:<x@second.test>"]
    eventually(lambda: world.left("x@second.test") is None)
    failed = [e["address"] for e in world.ours.events("host-failed")]
    assert "127.9.9.9" in failed


def test_a_connection_is_used_again(world: World) -> None:
    world.submit("x@implicit.test", "first of two")
    world.peer.message("first of two")
    eventually(lambda: world.left("x@implicit.test") is None)
    before = world.peer.sink.connections
    world.submit("y@implicit.test", "second of two")
    world.peer.message("second of two")
    assert world.peer.sink.connections == before


@pytest.mark.parametrize(
    ("name", "parameters", "header", "body", "status"),
    [
        ("utf8", " SMTPUTF8", "X-Name: J\u00f6rg\r\n", b"x\r\n", "5.6.7"),
        ("eight", " BODY=8BITMIME", "", b"\xc3\xa4\r\n", "5.6.3"),
    ],
)
def test_what_the_peer_cannot_take_is_not_sent(
    world: World, name: str, parameters: str, header: str, body: bytes, status: str
) -> None:
    """The peer offers neither SMTPUTF8 nor 8BITMIME."""
    to = f"{name}@implicit.test"
    world.submit(to, name, header.encode(), body, parameters)
    assert status in world.report_of(to)
    assert not [line for line in world.peer.sink.commands if to in line]


def test_a_report_that_cannot_be_delivered_is_not_reported(world: World) -> None:
    """A forward of the null sender's mail fails: nobody hears of it."""
    tried = "away@null.test"
    world.ours.command("alias", "add", "away@example.test", tried)
    with Smtp(world.ours.port(25)) as smtp:
        raw = b"From: x@implicit.test\r\nSubject: report\r\n\r\nx\r\n"
        assert smtp.message(raw, "away@example.test", sender="")[0] == 250

    def ended() -> bool:
        events = world.ours.events("delivery-attempt")
        return [e["state"] for e in events if e["recipient"] == tried][-1:] == [
            "failed"
        ] and world.left(tried) is None

    sent = len(world.ours.events("report-sent"))
    eventually(ended)
    world.submit("later@null.test", "later")  # a report that would come behind it
    world.report_of("later@null.test")
    eventually(lambda: len(world.ours.events("report-sent")) > sent)
    assert len(world.ours.events("report-sent")) == sent + 1
