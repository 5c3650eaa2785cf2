"""A full disk: temporary refusals everywhere, nothing lost, nothing doubled."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.lib import daemon
from tests.lib.clients import Imap, Jmap, Smtp
from tests.lib.volume import Volume, volume

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(180)
ALICE, BOB, PASSWORD = "alice@example.test", "bob@example.test", "full disk pass"
TOKEN = re.compile(rb"^Subject: (\S+)\r\n", re.MULTILINE)


@dataclasses.dataclass
class World:
    ours: daemon.Daemon
    disk: Volume

    def smtp(self) -> Smtp:
        return Smtp(self.ours.port(25))

    def imap(self) -> Imap:
        return Imap(self.ours.port(143), ALICE, PASSWORD)

    def jmap(self) -> Jmap:
        return Jmap(self.ours.port(80), ALICE, PASSWORD)

    def tokens(self, user: str) -> list[str]:
        with Imap(self.ours.port(143), user, PASSWORD) as imap:
            found = [TOKEN.search(raw) for raw in imap.messages()]
        return sorted(match[1].decode() for match in found if match is not None)

    def check(self) -> None:
        assert self.ours.command("storage", "check")["faults"] == []


@pytest.fixture
def world(tmp_path: Any) -> Iterator[World]:
    ours = daemon.make(tmp_path / "ours", f"{ALICE}:{PASSWORD}", f"{BOB}:{PASSWORD}")
    ours.override(
        f'[server]\ndata_dir = "{tmp_path / "disk"}"\n'
        "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
    )
    with volume(tmp_path / "disk", "48m") as disk:
        shutil.copytree(ours.home / "data", disk.path, dirs_exist_ok=True)
        with daemon.running(ours):
            yield World(ours, disk)
            log = ours.log()
            assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


def message(token: str, size: int = 500) -> bytes:
    line = b"x" * 70 + b"\r\n"
    return f"Subject: {token}\r\n\r\n".encode() + line * (size // len(line))


def refused_smtp(world: World, raw: bytes, to: Any = ALICE) -> None:
    with world.smtp() as smtp:
        code, text = smtp.message(raw, to)
        assert code in {451, 452}, (code, text)
        assert text.startswith(("4.3.0", "4.3.1")), text
        smtp.ok("NOOP")


def refused_submission(world: World) -> None:
    with Smtp(world.ours.port(587)) as smtp:
        smtp.secure()
        assert smtp.login(ALICE, PASSWORD)[0] == 235
        raw = f"From: {ALICE}\r\n".encode() + message("abroad")
        code, text = smtp.message(raw, "x@remote.test", sender=ALICE)
        assert code in {451, 452}, (code, text)
    assert world.ours.command("queue", "list") == []


def test_everything_is_refused_for_now_and_works_again(world: World) -> None:
    with world.smtp() as smtp:
        assert smtp.message(message("before"), ALICE)[0] == 250
    with world.imap() as imap, world.jmap() as jmap:
        imap.ok("SELECT INBOX")
        jmap.session()
        check_refusals(world, imap, jmap)
    assert world.tokens(ALICE) == ["after", "appended", "before", "draft"]
    assert world.tokens(BOB) == ["after"]
    world.check()
    world.ours.stop()
    world.ours.start()
    assert world.tokens(ALICE) == ["after", "appended", "before", "draft"]
    world.check()


def check_refusals(world: World, imap: Imap, jmap: Jmap) -> None:
    world.disk.fill()
    refused_smtp(world, message("small"))
    refused_smtp(world, message("large", 1_000_000))
    refused_smtp(world, message("to two"), (ALICE, BOB))
    refused_submission(world)
    for raw in (message("small"), message("large", 1_000_000)):
        assert imap.append(raw).startswith(b"NO [UNAVAILABLE]")
    assert imap.run("CREATE Somewhere")[0].startswith(b"NO [UNAVAILABLE]")
    (box,) = [
        b for b in jmap.ok("Mailbox/get", ids=None)["list"] if b["role"] == "inbox"
    ]
    draft = {"mailboxIds": {box["id"]: True}, "subject": "draft"}
    failed = jmap.ok("Email/set", create={"d": draft})["notCreated"]["d"]
    assert failed["type"] in {"serverUnavailable", "serverFail", "overQuota"}, failed
    for size in (500, 1_000_000):
        status, problem = jmap.upload(message("upload", size))
        assert status in {503, 507}, problem
    # what is there can be read
    assert len(imap.ok("FETCH 1:* (FLAGS ENVELOPE BODY.PEEK[])")) == 1
    assert len(jmap.ok("Email/query")["ids"]) == 1
    with pytest.raises(RuntimeError, match="full"):
        world.ours.command("account", "add", f"carol@example.test:{PASSWORD}")
    world.disk.free()
    with world.smtp() as smtp:
        assert smtp.message(message("after"), (ALICE, BOB))[0] == 250
    assert imap.append(message("appended", 1_000_000)).startswith(b"OK")
    assert "d" in jmap.ok("Email/set", create={"d": draft})["created"]
    assert jmap.upload(message("upload"))[0] == 201


def test_acknowledged_is_there_once_however_often_the_disk_fills(world: World) -> None:
    rng = random.Random(7)
    promised: dict[str, set[str]] = {ALICE: set(), BOB: set()}
    refused: set[str] = set()
    for turn in range(12):
        world.disk.fill(leave=rng.choice((0, 4096, 20_000, 60_000, 150_000, 400_000)))
        with world.smtp() as smtp, world.imap() as imap:
            for number in range(8):
                token = f"t{turn}.{number}"
                raw = message(token, rng.choice((100, 3000, 40_000)))
                to = rng.choice(((ALICE,), (BOB,), (ALICE, BOB)))
                if number % 3:
                    done = smtp.message(raw, to)[0] == 250
                else:
                    to, done = (ALICE,), imap.append(raw).startswith(b"OK")
                for user in to if done else ():
                    promised[user].add(token)
                refused |= set() if done else {token}
        world.disk.free()
    assert refused, "the disk was never full"
    for _ in range(2):
        for user, tokens in promised.items():
            assert world.tokens(user) == sorted(tokens)
        world.check()
        world.ours.stop()
        world.ours.start()


def test_a_daemon_says_that_it_cannot_start_on_a_full_disk(world: World) -> None:
    with world.smtp() as smtp:
        assert smtp.message(message("before"), ALICE)[0] == 250
    world.ours.stop()
    world.disk.fill()
    world.ours.start(wait=False)
    assert world.ours.process is not None
    assert world.ours.process.wait(30) == os.EX_TEMPFAIL
    world.ours.process = None
    last = world.ours.log().splitlines()[-1]
    assert last.startswith(f"mailserverd: cannot open {world.disk.path}/"), last
    world.disk.free()
    world.ours.start()
    with world.smtp() as smtp:
        assert smtp.message(message("later"), ALICE)[0] == 250
    assert world.tokens(ALICE) == ["before", "later"]
    world.check()
