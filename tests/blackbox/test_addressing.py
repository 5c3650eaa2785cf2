"""Who gets mail, over the wire: postmaster, details, aliases, loops; no relaying."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.lib import daemon
from tests.lib.clients import Imap, Smtp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(120)
PASSWORD = "addressing pass"
ALICE, BOB, CAROL = "alice@example.test", "bob@example.test", "carol@second.test"
PEOPLE = (ALICE, BOB, CAROL)
DOMAINS = ("example.test", "second.test")


@dataclasses.dataclass
class World:
    ours: daemon.Daemon
    sent: int = 0

    def deliver(self, *to: str, headers: str = "") -> tuple[int, str]:
        with Smtp(self.ours.port(25)) as smtp:
            return smtp.message(self.message(headers), to)

    def message(self, headers: str = "") -> bytes:
        self.sent += 1
        return f"{headers}Subject: number-{self.sent}.\r\n\r\n".encode()

    def reached(self) -> list[str]:
        """Return who has the message that was sent last, once per copy."""
        token = f"number-{self.sent}.".encode()
        found = []
        for user in PEOPLE:
            with Imap(self.ours.port(143), user, PASSWORD) as imap:
                found += [user for raw in imap.messages() if token in raw]
        return found


@pytest.fixture(scope="module")
def world(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    ours = daemon.make(
        tmp_path_factory.mktemp("addressing") / "ours",
        *(f"{user}:{PASSWORD}" for user in PEOPLE),
        engine=engine,
    )
    ours.override(
        "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
        '[dns]\nservers = ["127.0.0.1:9"]\ntimeout = "100ms"\n'
    )
    with daemon.running(ours):
        yield World(ours)
        assert ours.command("queue", "list") == [], "something was relayed"
    assert "Traceback" not in ours.log()


# --- who gets it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "whom"),
    [
        ("postmaster", ALICE),
        ("Postmaster", ALICE),
        ("POSTMASTER", ALICE),
        ("postmaster@example.test", ALICE),
        ("PostMaster@EXAMPLE.TEST", ALICE),
        ("abuse@example.test", ALICE),
        ("postmaster@second.test", CAROL),
        ("abuse@second.test", CAROL),
        ("postmaster+urgent@second.test", CAROL),
        ("alice+lists@example.test", ALICE),
        ("alice+a+b@example.test", ALICE),
        ("alice+@example.test", ALICE),
        ("ALICE+Lists@Example.Test", ALICE),
        ('"alice"@example.test', ALICE),
        ('"al\\ice"@example.test', ALICE),
        ("Alice@example.test", ALICE),
    ],
)
def test_an_address_leads_to_its_person(world: World, address: str, whom: str) -> None:
    """RFC 5321 section 4.5.1: postmaster, in any case, also without domain."""
    code, text = world.deliver(address)
    assert code == 250, text
    assert world.reached() == [whom]


@pytest.mark.parametrize(
    "address",
    [
        "nobody@example.test",
        "+alice@example.test",
        "+@example.test",
        "alice-lists@example.test",
        "nobody+alice@example.test",
        "alice@sub.example.test",
        "hostmaster@example.test",
        '"alice "@example.test',
        '"alice@example.test"@example.test',
        '"+lists"@example.test',
    ],
)
def test_other_addresses_have_nobody(world: World, address: str) -> None:
    code, text = world.deliver(address)
    assert (code, text[:5]) in {(550, "5.1.1"), (550, "5.7.1"), (553, "5.1.3")}, text


def test_several_addresses_of_one_person_are_one_copy(world: World) -> None:
    world.ours.command("alias", "add", "info@example.test", ALICE, BOB)
    to = (ALICE, "alice+x@example.test", "ALICE@example.test", "info@example.test", BOB)
    code, text = world.deliver(*to)
    assert code == 250, text
    assert world.reached() == [ALICE, BOB]


def test_aliases_of_aliases_reach_their_end(world: World) -> None:
    alias = ("alias", "add")
    world.ours.command(*alias, "one@example.test", CAROL)
    world.ours.command(*alias, "two@example.test", "one@example.test")
    world.ours.command(*alias, "three@second.test", "two@example.test", BOB)
    assert world.deliver("three@second.test")[0] == 250
    assert world.reached() == [BOB, CAROL]
    assert world.deliver("three+detail@second.test")[0] == 250
    assert world.reached() == [BOB, CAROL]


def test_a_cycle_of_aliases_cannot_be_made(world: World) -> None:
    """Nor does the half of one that stands keep mail from those it names."""
    add = ("alias", "add")
    world.ours.command(*add, "ring-a@example.test", ALICE)
    world.ours.command(*add, "ring-b@example.test", "ring-a@example.test", BOB)
    world.ours.command("alias", "remove", "ring-a@example.test")
    refused = world.ours.command(
        *add, "ring-a@example.test", "ring-b@example.test", CAROL, check=False
    )
    assert "lead to itself" in refused["error"]["text"]
    own = world.ours.command(
        *add, "self@example.test", "self@example.test", check=False
    )
    assert own["error"]["kind"] == "INVALID"
    assert world.deliver("ring-b@example.test")[0] == 250
    assert world.reached() == [BOB]


def test_an_alias_that_lost_its_target_is_no_black_hole(world: World) -> None:
    """Mail for it is refused, not accepted and dropped."""
    world.ours.command("alias", "add", "end@example.test", ALICE)
    world.ours.command("alias", "add", "dangling@example.test", "end@example.test")
    world.ours.command("alias", "remove", "end@example.test")
    assert world.deliver("dangling@example.test")[0] in {450, 451, 550}
    world.ours.command("alias", "remove", "dangling@example.test")


def test_a_message_that_goes_round_is_stopped(world: World) -> None:
    """RFC 5321 section 6.3."""
    hop = "Received: from a.test by b.test; Mon, 2 Nov 2026 10:00:00 +0000\r\n"
    assert world.deliver(ALICE, headers=hop * 40)[0] == 250
    code, text = world.deliver(ALICE, headers=hop * 60)
    assert (code, text[:5]) == (554, "5.4.6"), text
    folded = "received:\r\n from a.test\r\n by b.test; x\r\n"
    assert world.deliver(ALICE, headers=folded * 60)[0] == 554
    quoted = "X-Received: from a.test by b.test\r\n"
    assert world.deliver(ALICE, headers=quoted * 60)[0] == 250


def test_the_null_sender_and_strange_ones_are_accepted(world: World) -> None:
    """Anybody may write to us, whatever the reverse-path looks like."""
    for sender in (
        "",
        "x@[192.0.2.1]",
        '"odd name"@outside.test',
        "a" * 64 + "@x.test",
    ):
        with Smtp(world.ours.port(25)) as smtp:
            code, text = smtp.message(world.message(), ALICE, sender=sender)
            assert code == 250, (sender, text)


# --- no relaying ---------------------------------------------------------------------

RELAY = (
    "x@outside.test",
    "postmaster@outside.test",
    "abuse@outside.test",
    "x%outside.test@example.test",
    "x%outside.test",
    "x%outside.test@",
    "outside.test!x",
    "outside.test!x@example.test",
    "example.test!outside.test!x",
    '"x@outside.test"@example.test',
    '"x@outside.test"',
    '"x%outside.test"@example.test',
    '"outside.test!x"@example.test',
    "x@outside.test@example.test",
    "@example.test:x@outside.test",
    "@example.test,@second.test:x@outside.test",
    "@outside.test:alice@example.test@outside.test",
    "x@example.test.outside.test",
    "x@outside.test.",
    "x@outside.test.example.test",
    "x@[127.0.0.1]",
    "x@[192.0.2.1]",
    "x@[IPv6:::1]",
    "alice@[127.0.0.1]",
    "alice@127.0.0.1",
    "alice@localhost",
    "alice@mail.example.test",
    "x@example.test\\@outside.test",
    "x@example.test#outside.test",
    "x@#2130706433",
    "alice@example.test x@outside.test",
    "alice@example.test,x@outside.test",
    "alice@example.test>,<x@outside.test",
    "alice@example.test;x@outside.test",
    "alice@example.test(x@outside.test)",
    "alice (x@outside.test)@example.test",
    "alice@example.test\x0b@outside.test",
    "alice@example.test\t@outside.test",
    "alice+x@outside.test",
    "alice+@outside.test",
    "|/bin/sh@example.test",
    '"|cat /etc/passwd"@example.test',
    "/etc/passwd@example.test",
    ":include:/etc/passwd@example.test",
    "..@example.test",
    "alice@EXAMPLE.TEST@outside.test",
    "alice@\u0435xample.test",  # a Cyrillic letter
    "alice@example。test@outside.test",
    "x@xn--outside.test",
)


@pytest.mark.parametrize("address", RELAY)
def test_nobody_relays_who_did_not_log_in(world: World, address: str) -> None:
    """Whatever is written: not accepted, or at least for nobody else."""
    for utf8 in ("", " SMTPUTF8"):
        for sender in ("", ALICE, "x@outside.test"):
            with Smtp(world.ours.port(25)) as smtp:
                smtp.ok(f"MAIL FROM:<{sender}>{utf8}")
                code, text = smtp.run(f"RCPT TO:<{address}>".encode())
                assert 500 <= code < 560, text
                assert smtp.run("DATA")[0] in {503, 554}
    with Smtp(world.ours.port(25)) as smtp:
        smtp.ok("MAIL FROM:<>")
        assert smtp.run(f"RCPT TO: {address}".encode())[0] >= 500


def test_lmtp_relays_for_nobody(world: World) -> None:
    """Trusted is who delivers there, but only for our own people (RFC 2033)."""
    for start in range(0, len(RELAY), 10):
        with Smtp(world.ours.port(24), greet=False) as lmtp:
            assert lmtp.run("EHLO x.test")[0] == 500
            lmtp.ok("LHLO x.test")
            for address in RELAY[start : start + 10]:
                lmtp.ok("MAIL FROM:<> SMTPUTF8")
                code, text = lmtp.run(f"RCPT TO:<{address}>".encode())
                assert 500 <= code < 560, (address, text)
                lmtp.ok("RSET")


def test_submission_is_for_those_who_logged_in(world: World) -> None:
    for port, tls in ((587, False), (465, True)):
        with Smtp(world.ours.port(port), tls=tls) as smtp:
            if not tls:
                assert smtp.run(f"MAIL FROM:<{ALICE}>")[0] == 530
                assert smtp.login(ALICE, PASSWORD)[0] in {530, 538}
                smtp.secure()
            assert smtp.run(f"MAIL FROM:<{ALICE}>")[0] == 530
            assert smtp.login(ALICE, "wrong")[0] == 535
            assert smtp.run(f"MAIL FROM:<{ALICE}>")[0] == 530
            assert smtp.run("RCPT TO:<x@outside.test>")[0] in {503, 530}
            assert smtp.login(ALICE, PASSWORD)[0] == 235
            for sender in (BOB, "x@outside.test", f"{ALICE}.outside.test"):
                code, text = smtp.run(f"MAIL FROM:<{sender}>")
                assert code in {530, 550, 553}, (sender, text)
            smtp.ok("MAIL FROM:<alice+x@example.test>")


def test_there_is_no_login_where_mail_comes_in(world: World) -> None:
    with Smtp(world.ours.port(25), greet=False) as smtp:
        assert "AUTH" not in smtp.ok("EHLO x.test")
        assert smtp.login(ALICE, PASSWORD)[0] in {502, 503}
        smtp.secure()
        assert "AUTH" not in smtp.ok("EHLO x.test")
        assert smtp.login(ALICE, PASSWORD)[0] in {502, 503}


def test_the_header_from_belongs_to_the_sender(world: World) -> None:
    """Also where the null sender is allowed, as for receipts (RFC 8098)."""
    for author in (BOB, "x@outside.test", f"{ALICE}, {BOB}", f'"{ALICE}" <{BOB}>'):
        with Smtp(world.ours.port(587)) as smtp:
            smtp.secure()
            assert smtp.login(ALICE, PASSWORD)[0] == 235
            raw = world.message(f"From: {author}\r\n")
            for sender in (ALICE, ""):
                code, text = smtp.message(raw, CAROL, sender=sender)
                assert code in {550, 553, 554}, (author, sender, text)
            own = world.message(f"From: {ALICE}\r\nBcc: {BOB}\r\n")
            assert smtp.message(own, CAROL, sender=ALICE)[0] == 250
    with Imap(world.ours.port(143), CAROL, PASSWORD) as imap:
        assert b"\nBcc:" not in imap.messages()[-1]
