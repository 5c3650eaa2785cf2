"""Strangers and members who would be somebody else: relaying, logging in, senders."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING

import pytest

from tests.lib.clients import Imap, Smtp
from tests.lib.siege import (
    ALICE,
    BOB,
    CAROL,
    GUESS,
    MALLORY,
    PASSWORDS,
    Smarthost,
    basic,
    besieged,
    imap,
    jmap,
    submitting,
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


# --- open relay ------------------------------------------------------------------

ELSEWHERE = (
    "x@far.test",
    "@one.test:x@far.test",
    "@one.test,@two.test:x@far.test",
    "x%far.test@one.test",
    "far.test!x@one.test",
    '"x@far.test"@one.test',
    '"x%far.test"@one.test',
    "x@far.test@one.test",
    "x@[127.0.0.1]",
    "x@[IPv6:::1]",
    "x@127.0.0.1",
    "alice@one.test.",
    "alice@mx.one.test",
    "alice@localhost",
    "alice@sub.one.test",
    "alice@one.test@far.test",
    "alice@one.test,x@far.test",
    "alice@\u043ene.test",  # Cyrillic
    "postmaster@far.test",
    "alice",
    "",
)


def test_nobody_relays(ours: daemon.Daemon, far: Smarthost) -> None:
    with Smtp(ours.port(25)) as smtp:
        for number, address in enumerate(ELSEWHERE):
            if number % 5 == 0:
                smtp.close()
                smtp = Smtp(ours.port(25))  # noqa: PLW2901 - errors are counted
            smtp.ok(f"MAIL FROM:<{ALICE}> SMTPUTF8")
            code, text = smtp.run(f"RCPT TO:<{address}>")
            assert 500 <= code < 560, (address, code, text)
            assert smtp.run("DATA")[0] in {503, 554}
            smtp.ok("RSET")
        smtp.close()
    with Smtp(ours.port(24), greet=False) as lmtp:
        lmtp.ok("LHLO x")
        lmtp.ok(f"MAIL FROM:<{ALICE}>")
        assert lmtp.run("RCPT TO:<x@far.test>")[0] == 550
    assert not far.sink.taken


# --- authentication ----------------------------------------------------------------


def plain(user: str, password: str, authzid: str = "") -> str:
    return base64.b64encode(f"{authzid}\0{user}\0{password}".encode()).decode()


def test_no_auth_outside_tls_and_none_on_port_25(ours: daemon.Daemon) -> None:
    right = f"AUTH PLAIN {plain(ALICE, PASSWORDS[ALICE])}"
    with Smtp(ours.port(587)) as smtp:
        assert "AUTH" not in smtp.ok("EHLO x")
        assert smtp.run(right)[0] == 538
        assert smtp.run(f"MAIL FROM:<{ALICE}>")[0] == 530
        smtp.secure()
        assert smtp.run(f"MAIL FROM:<{ALICE}>")[0] == 530
        assert smtp.run(right)[0] == 235
    with Smtp(ours.port(25)) as smtp:
        smtp.secure()
        assert smtp.run(right)[0] == 502


def test_exchanges_that_go_wrong(ours: daemon.Daemon) -> None:
    password = PASSWORDS[ALICE]
    for lines, code in (
        (["AUTH LOGIN", "*"], 501),
        (["AUTH LOGIN", "!!!"], 501),
        (["AUTH LOGIN YQ==", "*"], 501),
        (["AUTH PLAIN", ""], 501),
        (["AUTH PLAIN ="], 501),
        (["AUTH PLAIN YQ"], 501),
        (["AUTH PLAIN", "A" * 12_000], 500),
        ([f"AUTH PLAIN {plain(ALICE, password, BOB)}"], 535),
        ([f"AUTH PLAIN {plain(ALICE, password + chr(0) + 'x')}"], 501),
        (["AUTH CRAM-MD5"], 504),
        (["AUTH"], 504),
    ):
        with Smtp(ours.port(465), tls=True) as smtp:
            for line in lines:
                got, text = smtp.run(line)
            assert got == code, (lines, got, text)
            assert smtp.run(f"MAIL FROM:<{ALICE}>")[0] == 530
    with Imap(ours.port(143)) as client:
        reply, _ = client.run("AUTHENTICATE PLAIN ====")
        assert reply.startswith(b"BAD")
        tag = client.begin("AUTHENTICATE PLAIN")
        assert client.response().startswith(b"+")
        client.send(b"*\r\n")
        assert client.finish(tag)[0].startswith(b"BAD")
        assert client.run("SELECT INBOX")[0].startswith(b"BAD")


def test_who_exists_is_not_told(ours: daemon.Daemon) -> None:
    """Neither by the reply nor by its time: each wrong password costs one hash."""
    known = (ALICE, BOB, CAROL)
    unknown = ("nobody@one.test", "alic@one.test", "alice@nowhere.test")
    answers = set()
    times: dict[str, list[float]] = {"known": [], "unknown": []}
    for _ in range(3):
        for kind, users in (("known", known), ("unknown", unknown)):
            for user in users:
                before = time.perf_counter()
                answers.add(basic(ours, user, GUESS))
                times[kind].append(time.perf_counter() - before)
    assert len(answers) == 1, answers
    # The least of several: what a busy machine adds is nobody's.
    ratio = min(times["known"]) / min(times["unknown"])
    assert 0.6 < ratio < 1.6, times
    replies = set()
    for user in (BOB, "nobody2@one.test"):
        with Smtp(ours.port(465), tls=True) as smtp:
            replies.add(smtp.login(user, GUESS))
        with Imap(ours.port(143)) as client:
            replies.add(client.run(f'LOGIN {user} "{GUESS}"')[0])
    assert len(replies) == 2, replies


def test_guessing_is_slowed_and_the_owner_not_shut_out(ours: daemon.Daemon) -> None:
    right = PASSWORDS[MALLORY]
    assert basic(ours, MALLORY, right)[0] == 200
    codes = [basic(ours, MALLORY, f"{GUESS}{n}")[0] for n in range(10)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert basic(ours, MALLORY, right)[0] == 200
    with imap(ours, MALLORY), submitting(ours, MALLORY):
        pass
    codes = [basic(ours, "ghost@two.test", f"{GUESS}{n}")[0] for n in range(10)]
    assert codes[-1] == 429, "as for those who exist"


# --- senders ---------------------------------------------------------------------

FORGED = (
    b"From: bob@one.test\r\n",
    b"fROM : bob@one.test\r\n",
    b"From:\r\n bob@one.test\r\n",
    b"From: alice@one.test, bob@one.test\r\n",
    b"From: <alice@one.test> <bob@one.test>\r\n",
    b"From: alice@one.test\r\nFrom: bob@one.test\r\n",
    b"From: alice@one.test\r\nSender: bob@one.test\r\n",
    b"From: g: alice@one.test, bob@one.test;\r\n",
    b"From: (alice@one.test) bob@one.test\r\n",
    b"From: =?utf-8?q?bob=40one.test?=\r\n",
    b"From: bob@[127.0.0.1]\r\n",
    b"From: bob@one.test.\r\n",
    b"From: bob+alice@one.test\r\n",
    b'From: "alice@one.test> "@two.test\r\n',
    b"From: <@alice@one.test:bob@one.test>\r\n",
    "From: alice@\u043ene.test\r\n".encode(),
    b"From: alice@two.test\r\n",
    b'From: "Bob <bob@one.test>":;\r\n',
    b"From: undisclosed-senders:;\r\n",
    b"From: <>\r\n",
    b"From:\r\n",
    b"From: ceo\r\n",
    b"From: " + b"alice@one.test,\r\n " * 10_000 + b"bob@one.test\r\n",
    b"From: alice@one.test, (" + b"x" * 200_000 + b") bob@one.test\r\n",
    b"X-From: bob@one.test\r\n",
    b"Fro\r\n m: bob@one.test\r\n",
    b"X: y\r\n\r\nFrom: alice@one.test\r\n",
)
# APPEND and import take any octets; what leaves has CRLF alone.
HIDDEN = (
    b"X: y\rFrom: bob@one.test\r\n",
    b"X: y\nFrom: bob@one.test\n",
    b"From: alice@one.test\rFrom: bob@one.test\r\n",
    b"From: alice@one.test\r\nX: y\rSender: bob@one.test\r\n",
    b"X: y\x0bFrom: bob@one.test\r\n",
    b"From: alice@one.test\0, bob@one.test\r\n",
)


def test_nobody_writes_as_somebody_else(ours: daemon.Daemon) -> None:
    with submitting(ours) as smtp:
        for address in (
            BOB,
            CAROL,
            "bob+x@one.test",
            "alice@two.test",
            "alice@[127.0.0.1]",
            "postmaster@one.test",
            f"@{ALICE}:{BOB}",
        ):
            assert smtp.run(f"MAIL FROM:<{address}>")[0] in {501, 553}, address
    for start in range(0, len(FORGED), 5):  # sessions end after ten errors
        with submitting(ours) as smtp:
            for header in FORGED[start : start + 5]:
                raw = header + b"Subject: forged\r\n\r\nx\r\n"
                code, text = smtp.message(raw, BOB, sender=ALICE)
                assert 500 <= code < 560, (header[:80], code, text)
                code, text = smtp.message(raw, BOB, sender="")
                assert 500 <= code < 560, (header[:80], code, text)
    with imap(ours, BOB) as client:
        assert not [m for m in client.messages() if b"Subject: forged" in m]


def test_nobody_writes_as_somebody_else_by_jmap(ours: daemon.Daemon) -> None:
    with jmap(ours) as client:
        for header in (*HIDDEN, *FORGED):
            raw = header + b"Subject: forged\r\n\r\nx\r\n"
            error = client.submitted(client.imported(raw), ALICE, BOB)
            assert error, header[:80]
            assert error["type"] in {"forbiddenFrom", "invalidEmail"}, error
        good = client.imported(b"From: alice@one.test\r\n\r\nx\r\n")
        for sender in (BOB, "bob+x@one.test", CAROL, "alice@two.test", f"<{ALICE}>"):
            error = client.submitted(good, sender, BOB)
            assert error["type"] in {"forbiddenMailFrom", "invalidProperties"}, error
        for email in (BOB, "bob+x@one.test", "*@one.test"):
            create = {"create": {"x": {"email": email, "name": "x"}}}
            [[_, answer]] = client.calls(("Identity/set", create))
            assert answer["notCreated"]["x"]["type"] == "forbiddenFrom", answer
    with imap(ours, BOB) as reader:
        assert not [m for m in reader.messages() if b"Subject: forged" in m]
