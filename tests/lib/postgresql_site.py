"""Daemons on PostgreSQL, with two accounts, and what is asked of them."""

from __future__ import annotations

import contextlib
import urllib.parse
from typing import TYPE_CHECKING, Any

from tests.lib import daemon, postgresql
from tests.lib.clients import Imap, Smtp
from tests.lib.databases import Postgresql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.clients import Jmap
    from tests.lib.databases import Server

PASSWORD = "elephant pass"
ALICE, BOB = "alice@example.test", "bob@example.test"
PEOPLE = [f"{address}:{PASSWORD}" for address in (ALICE, BOB)]
NO_POLICY = "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
SECRETS = (postgresql.PASSWORD, urllib.parse.quote(postgresql.PASSWORD, safe=""))


def message(token: str) -> bytes:
    text = f"From: sender@outside.test\r\nSubject: {token}\r\n\r\nhello {token}\r\n"
    return text.encode()


def deliver(ours: daemon.Daemon, token: str, *to: str) -> tuple[int, str]:
    with Smtp(ours.port(25)) as smtp:
        return smtp.message(message(token), to)


def subjects(ours: daemon.Daemon, user: str = ALICE) -> list[str]:
    """Return the subjects in the inbox, oldest first."""
    with Imap(ours.port(143), user, PASSWORD) as imap:
        return imap.subjects()


def faults(ours: daemon.Daemon) -> Any:
    return ours.command("storage", "check", check=False)["faults"]


def inbox(jmap: Jmap) -> str:
    boxes = jmap.ok("Mailbox/get", ids=None)["list"]
    (found,) = (box["id"] for box in boxes if box["role"] == "inbox")
    return str(found)


@contextlib.contextmanager
def running(ours: daemon.Daemon) -> Iterator[daemon.Daemon]:
    """Run it; the log must hold no traceback and no password at the end."""
    ours.override(NO_POLICY)
    with daemon.running(ours):
        yield ours
    log = ours.log()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert not any(secret in log for secret in SECRETS)


@contextlib.contextmanager
def on(server: Server | None = None) -> Iterator[Postgresql]:
    engine = Postgresql(server)
    try:
        yield engine
    finally:
        engine.close()
