"""swaks, a stranger's SMTP client, at every door."""

from __future__ import annotations

import imaplib
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lib import daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(not shutil.which("swaks"), reason="swaks is not installed"),
    pytest.mark.timeout(120),
]
BOB, ALICE, PASSWORD = "bob@example.test", "alice@example.test", "swaks pass"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    home = tmp_path_factory.mktemp("swaks") / "ours"
    one = daemon.make(home, f"{BOB}:{PASSWORD}", f"{ALICE}:{PASSWORD}")
    with daemon.running(one):
        yield one


def swaks(ours: daemon.Daemon, port: int, *options: str) -> tuple[int, str]:
    """Return the exit status and the conversation."""
    done = subprocess.run(
        ["swaks", "--server", f"127.0.0.1:{ours.port(port)}", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def subjects(ours: daemon.Daemon, user: str) -> str:
    with imaplib.IMAP4("127.0.0.1", ours.port(143)) as imap:
        imap.login(user, PASSWORD)
        imap.select("INBOX", readonly=True)
        return str(imap.fetch("1:*", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1])


@pytest.mark.parametrize(
    ("port", "options"),
    [
        (25, ()),
        (25, ("--tls",)),
        (25, ("--pipeline",)),
        (24, ("--protocol", "LMTP")),
    ],
)
def test_mail_from_outside(
    ours: daemon.Daemon, port: int, options: tuple[str, ...]
) -> None:
    subject = f"outside {port} {' '.join(options)}"
    sender = ("--from", "someone@outside.test", "--to", BOB)
    status, talk = swaks(ours, port, *sender, *options, "--h-Subject", subject)
    assert status == 0, talk
    assert subject in subjects(ours, BOB)


@pytest.mark.parametrize(
    ("port", "options"),
    [
        (587, ("--tls", "--auth", "PLAIN")),
        (587, ("--tls", "--auth", "LOGIN")),
        (465, ("--tls-on-connect", "--auth", "PLAIN")),
    ],
)
def test_submission_with_a_password(
    ours: daemon.Daemon, port: int, options: tuple[str, ...]
) -> None:
    subject = f"submitted {port} {options[-1]}"
    login = ("--auth-user", BOB, "--auth-password", PASSWORD)
    people = ("--from", BOB, "--to", ALICE, "--h-Subject", subject)
    status, talk = swaks(ours, port, *options, *login, *people)
    assert status == 0, talk
    assert subject in subjects(ours, ALICE)


def test_refusals_are_told_as_they_are(ours: daemon.Daemon) -> None:
    sender = ("--from", "someone@outside.test")
    status, talk = swaks(ours, 25, *sender, "--to", "nobody@example.test")
    assert status != 0
    assert "550 5.1.1" in talk
    status, talk = swaks(ours, 25, *sender, "--to", "x@elsewhere.test")
    assert status != 0
    assert "550 5.7.1" in talk
    people = ("--from", BOB, "--to", ALICE)
    status, talk = swaks(ours, 587, "--auth", "PLAIN", "--auth-user", BOB, *people)
    assert status != 0, "no password without TLS"
    wrong = ("--auth-user", BOB, "--auth-password", "wrong")
    status, talk = swaks(ours, 587, "--tls", "--auth", "PLAIN", *wrong, *people)
    assert status != 0
    assert "535 5.7.8" in talk
