"""``storage blobs`` beside a running daemon, and without one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.lib import daemon
from tests.lib.clients import Imap, Smtp

if TYPE_CHECKING:
    import pathlib

    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(120)
ALICE, PASSWORD = "alice@example.test", "first-Secret-of-alice"
LARGE = 4 << 20  # octets: such a message has a segment of its own


def message(number: int, size: int = 1000) -> bytes:
    body = random.Random(number).randbytes(size // 2).hex().encode()
    lines = [body[at : at + 70] for at in range(0, len(body), 70)]
    return b"Subject: %d\r\n\r\n" % number + b"\r\n".join(lines) + b"\r\n"


def in_mailbox(made: daemon.Daemon) -> list[bytes]:
    with Imap(made.port(143)) as client:
        client.ok(f"LOGIN {ALICE} {PASSWORD}")
        return client.messages()


def expunge(made: daemon.Daemon, uids: str) -> None:
    with Imap(made.port(143)) as client:
        client.ok(f"LOGIN {ALICE} {PASSWORD}")
        client.ok("SELECT INBOX")
        client.ok(f"UID STORE {uids} +FLAGS (\\Deleted)")
        client.ok("EXPUNGE")


def test_what_is_deleted_is_removed_and_the_rest_stays(
    engine: Engine, tmp_path: pathlib.Path
) -> None:
    made = daemon.make(tmp_path / "d", f"{ALICE}:{PASSWORD}", engine=engine)
    made.override("[inbound]\nspf = false\ndkim = false\ndmarc = false\n")
    sent = [message(1, LARGE), message(2, LARGE), message(3)]
    with daemon.running(made):
        with Smtp(made.port(25)) as client:
            for one in sent:
                client.message(one, ALICE)
        kept = in_mailbox(made)
        found = made.command("storage", "blobs", "stats")
        assert (found["segments"], found["records"]) == (3, 3)
        assert found["live"] > 0.99 * found["octets"] > 2 * LARGE
        assert found["puts"] == 3
        verified = made.command("storage", "blobs", "verify")
        assert (verified["records"], verified["damage"]) == (3, [])
        expunge(made, "1")
        compact = ("storage", "blobs", "compact", "--grace", "0")
        plan = made.command(*compact, "--dry-run")
        assert (plan["forgotten"], plan["retired"]) == (1, 1)
        assert LARGE < plan["pending"] < 1.1 * LARGE
        assert made.command("storage", "blobs", "stats")["segments"] == 3
        done = made.command(*compact)
        assert (done["removed"], done["garbage"]) == (1, 0)
        assert (done["retired"], done["pending"]) == (0, 0)  # nothing waits
        assert done["freed"] == plan["pending"]
        assert made.command("storage", "blobs", "stats")["segments"] == 2
        assert in_mailbox(made) == kept[1:]
        assert made.command("storage", "check")["faults"] == []
        assert "Traceback" not in made.log()
    # And without the daemon.
    assert made.command("storage", "blobs", "verify")["records"] == 2
    assert made.command(*compact)["removed"] == 0
    found = made.command("storage", "blobs", "stats")
    assert (found["segments"], found["live_records"]) == (2, 2)
