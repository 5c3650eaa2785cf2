"""Parts that fail: a locked, corrupt or missing store, DNS, peers, the log itself."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import socket
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.lib import daemon
from tests.lib.clients import Imap, Jmap, Smtp
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import contextlib
    import pathlib
    from collections.abc import Callable, Iterator

    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(180)
PASSWORD = "faulty pass"
ALICE, BOB = "alice@example.test", "bob@example.test"  # on the first, second shard
NO_POLICY = "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
TEMPORARY = (b"NO [UNAVAILABLE]", b"BYE [UNAVAILABLE]")


def message(token: str, size: int = 200) -> bytes:
    line = b"x" * 70 + b"\r\n"
    head = f"From: sender@outside.test\r\nSubject: {token}\r\n\r\n".encode()
    return head + line * (size // len(line))


@dataclasses.dataclass
class World:
    ours: daemon.Daemon

    @property
    def data(self) -> pathlib.Path:
        return self.ours.home / "data"

    def locked(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self.ours.engine.locked(self.data, name)

    def deliver(self, token: str, *to: str, size: int = 200) -> tuple[int, str]:
        with Smtp(self.ours.port(25)) as smtp:
            return smtp.message(message(token, size), to)

    def imap(self, user: str) -> Imap:
        return Imap(self.ours.port(143), user, PASSWORD)

    def jmap(self, user: str) -> Jmap:
        return Jmap(self.ours.port(80), user, PASSWORD)

    def subjects(self, user: str) -> list[str]:
        with self.imap(user) as imap:
            return imap.subjects()

    def faults(self) -> Any:
        return self.ours.command("storage", "check", check=False)["faults"]


@pytest.fixture(scope="module")
def template(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> daemon.Daemon:
    """An instance with two shards that nobody starts."""
    ours = daemon.make(
        tmp_path_factory.mktemp("faults") / "ours",
        *(f"{user}:{PASSWORD}" for user in (ALICE, BOB)),
        engine=engine,
        shards=2,
    )
    ours.override(NO_POLICY)
    shards = {row["address"]: row["shard"] for row in ours.command("account", "list")}
    assert shards == {ALICE: 0, BOB: 1}
    return ours


@pytest.fixture
def world(template: daemon.Daemon, tmp_path: pathlib.Path) -> Iterator[World]:
    """A copy of it, running; the log must hold no traceback at the end."""
    ours = template.copy(tmp_path / "ours")
    with daemon.running(ours):
        yield World(ours)
        log = ours.log()
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Make blocking calls at the same time; return their results."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


# --- a locked shard ------------------------------------------------------------------


def test_a_locked_shard_is_a_temporary_error(world: World) -> None:
    """For its accounts alone, until it is free; what can be read is read."""
    assert world.deliver("before", ALICE)[0] == 250
    with world.imap(ALICE) as imap, world.jmap(ALICE) as jmap, world.locked("shard-0"):
        imap.ok("SELECT INBOX")
        jmap.session()

        def create() -> Any:
            return jmap.call("Mailbox/set", create={"m": {"name": "New"}})

        smtp, appended, created, other = at_once(
            lambda: world.deliver("refused", ALICE),
            lambda: imap.append(message("refused")),
            create,
            lambda: world.deliver("elsewhere", BOB),
        )
        assert smtp[0] == 451
        assert smtp[1].startswith("4.3.0"), smtp
        assert appended.startswith(TEMPORARY), appended
        assert "serverUnavailable" in str(created), created
        assert other[0] == 250
        assert world.subjects(ALICE) == ["before"]
    assert world.deliver("after", ALICE)[0] == 250
    assert world.subjects(ALICE) == ["before", "after"]
    assert world.subjects(BOB) == ["elsewhere"]
    assert world.faults() == []


def test_mail_for_a_locked_shard_and_another_is_kept_for_it(world: World) -> None:
    """Once accepted for several, each gets it: at once, or when its shard is free."""
    with world.locked("shard-0"):
        code, text = world.deliver("for both", ALICE, BOB)
        assert code == 250, text
        eventually(lambda: world.subjects(BOB) == ["for both"])
        assert world.subjects(ALICE) == []
    eventually(lambda: world.subjects(ALICE) == ["for both"], limit=60)
    assert world.subjects(BOB) == ["for both"]
    assert world.faults() == []


def test_a_locked_directory_does_not_stop_mail(world: World) -> None:
    assert world.deliver("before", ALICE)[0] == 250
    with world.locked("directory"):
        assert world.deliver("while locked", ALICE)[0] == 250
        assert world.subjects(ALICE) == ["before", "while locked"]
        result = world.ours.command("account", "add", f"carol@example.test:{PASSWORD}",
                                    check=False)  # fmt: skip
        assert result["error"]["kind"] == "UNAVAILABLE", result
    world.ours.command("account", "add", f"carol@example.test:{PASSWORD}")


# --- a corrupt shard -----------------------------------------------------------------


def test_a_shard_with_corrupt_pages_is_a_temporary_error(world: World) -> None:
    """Never an empty folder, never a bounce; the other shard's accounts are served."""
    for number in range(30):
        assert world.deliver(f"m{number}", ALICE, size=3000)[0] == 250
    assert world.deliver("elsewhere", BOB)[0] == 250
    world.ours.stop()
    world.ours.engine.spoil(world.data, "shard-0", "mailbox", "email", "account")
    world.ours.start()
    code, text = world.deliver("refused", ALICE)
    assert (code, text[:5]) == (451, "4.3.0"), text
    assert refused_login(world, ALICE).startswith(b"NO [UNAVAILABLE]")
    with world.jmap(ALICE) as jmap:
        for name in ("Mailbox/get", "Email/query", "Thread/get"):
            arguments = {} if name == "Email/query" else {"ids": None}
            said, answer = jmap.call(name, **arguments)
            assert said == "error", (said, answer)
            assert answer["type"] in {"serverUnavailable", "requestTooLarge"}, answer
    assert world.deliver("still here", BOB)[0] == 250
    assert world.subjects(BOB) == ["elsewhere", "still here"]
    assert any("shard-0" in fault for fault in world.faults())


# --- a shard that is not there -------------------------------------------------------


def in_time(call: Callable[[], Any], limit: float = 5.0) -> Any:
    """Make a call that a shard elsewhere must not hold up."""
    began = time.monotonic()
    result = call()
    assert time.monotonic() - began < limit, result
    return result


def test_a_shard_that_is_down_at_start_is_waited_for(world: World) -> None:
    """Its accounts get temporary errors and their mail later; nobody else notices."""
    for user in (ALICE, BOB):
        assert world.deliver("before", user)[0] == 250
    world.ours.stop()
    with world.ours.engine.hidden(world.data, "shard-0"):
        world.ours.start()
        assert in_time(lambda: world.subjects(BOB)) == ["before"]
        code, text = in_time(lambda: world.deliver("refused", ALICE))
        assert (code, text[:5]) == (451, "4.3.0"), text
        assert in_time(lambda: world.deliver("for both", ALICE, BOB))[0] == 250
        assert in_time(lambda: world.deliver("for one", BOB))[0] == 250
        assert world.subjects(BOB) == ["before", "for both", "for one"]
        assert refused_login(world, ALICE).startswith(b"NO [UNAVAILABLE]")
        with world.jmap(ALICE) as jmap:
            for name in ("Mailbox/get", "Email/query", "Email/changes"):
                arguments = {"sinceState": "1-1"} if name == "Email/changes" else {}
                said, answer = jmap.call(name, **arguments)
                assert (said, answer["type"]) == ("error", "serverUnavailable"), name
        new = f"carol@example.test:{PASSWORD}"
        assert world.ours.command("account", "add", new)["shard"] == 1
        assert_shown_as_down(world, "shard-0")
    eventually(lambda: not is_refused(world, ALICE), limit=60)
    eventually(lambda: world.subjects(ALICE) == ["before", "for both"], limit=60)
    assert world.deliver("after", ALICE)[0] == 250
    assert world.subjects(ALICE) == ["before", "for both", "after"]
    assert world.faults() == []
    names = [e["event"] for e in world.ours.events() if e.get("database") == "shard-0"]
    assert names.count("database-down") == 1, names  # not at every try
    assert names.count("database-up") == 1


def refused_login(world: World, user: str) -> bytes:
    with Imap(world.ours.port(143)) as imap:
        return imap.run(f'LOGIN {user} "{PASSWORD}"')[0]


def is_refused(world: World, user: str) -> bool:
    return not refused_login(world, user).startswith(b"OK")


def assert_shown_as_down(world: World, name: str) -> None:
    rows = {row["name"]: row for row in world.ours.command(
        "storage", "status", check=False)}  # fmt: skip
    assert [row["name"] for row in rows.values() if row["problem"]] == [name]
    assert any(name in fault for fault in world.faults())
    where = f"http://127.0.0.1:{world.ours.port(9090)}"
    with urllib.request.urlopen(f"{where}/readyz", timeout=10) as answer:
        assert f"ok, {name} down".encode() in answer.read()
    gauge = f'mailserverd_database_up{{database="{name}"}} 0.0'
    with urllib.request.urlopen(f"{where}/metrics", timeout=10) as answer:
        assert gauge.encode() in answer.read()


@pytest.mark.parametrize("name", ["directory", "queue"])
def test_without_the_directory_or_the_queue_there_is_no_start(
    world: World, name: str
) -> None:
    world.ours.stop()
    world.ours.engine.ruin(world.data, name)
    world.ours.start(wait=False)
    assert world.ours.process is not None
    assert world.ours.process.wait(30) == os.EX_TEMPFAIL
    world.ours.process = None
    assert world.ours.log().splitlines()[-1].startswith("mailserverd: ")


# --- missing blobs -------------------------------------------------------------------


def test_a_missing_segment_hurts_its_messages_alone(world: World) -> None:
    """The large message has a segment of its own."""
    for token, size in (("first", 200), ("large", 6_000_000), ("last", 200)):
        assert world.deliver(token, ALICE, size=size)[0] == 250
    world.ours.stop()
    segments = [p for p in (world.ours.home / "data/blobs").iterdir() if p.is_file()]
    large = max(segments, key=lambda path: path.stat().st_size)
    assert large.stat().st_size > 6_000_000
    large.unlink()
    world.ours.start()
    assert world.subjects(ALICE) == ["first", "large", "last"]
    with world.imap(ALICE) as imap:
        imap.ok("SELECT INBOX")
        assert len(imap.ok("FETCH 1:* (UID FLAGS RFC822.SIZE BODYSTRUCTURE)")) == 3
        for uid, good in ((1, True), (2, False), (3, True)):
            reply, untagged = imap.run(f"UID FETCH {uid} (BODY.PEEK[])")
            assert reply.startswith(b"OK") is good, reply
            assert reply.startswith(TEMPORARY) is not good, reply
            assert bool(untagged) is good, untagged
        reply, untagged = imap.run("UID FETCH 1:* (BODY.PEEK[])")
        assert reply.startswith(TEMPORARY), reply
        assert {int(response.split()[1]) for response in untagged} == {1, 3}
    with world.jmap(ALICE) as jmap:
        ids = jmap.ok("Email/query", sort=[{"property": "size"}])["ids"]
        got = jmap.ok("Email/get", ids=ids, properties=["subject", "blobId", "preview"])
        blobs = {email["subject"]: email["blobId"] for email in got["list"]}
        assert jmap.download(blobs["first"])[0] == 200
        assert jmap.download(blobs["large"])[0] in {500, 503}
        bodies = {"properties": ["subject", "bodyValues"], "fetchAllBodyValues": True}
        shown = jmap.ok("Email/get", ids=ids, **bodies)["list"]
        cut = {e["subject"]: [v["isTruncated"] for v in e["bodyValues"].values()]
               for e in shown}  # fmt: skip
        assert cut == {"first": [False], "large": [True], "last": [False]}
        (large_id,) = [e["id"] for e in shown if e["subject"] == "large"]
        said, answer = jmap.call("Email/get", ids=[large_id], **bodies)
        assert (said, answer["type"]) == ("error", "serverUnavailable"), answer
    assert world.deliver("new", ALICE)[0] == 250
    assert any("blob" in fault for fault in world.faults())


# --- DNS -----------------------------------------------------------------------------


def dead_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("accept", [False, True])
def test_dns_that_does_not_answer(world: World, accept: bool) -> None:
    """Mail waits at its sender, or comes in and is marked."""
    world.ours.stop()
    world.ours.override(
        f'[inbound]\nspf_fail = "mark"\naccept_temperror = {str(accept).lower()}\n'
        f'[dns]\nservers = ["127.0.0.1:{dead_port()}"]\ntimeout = "300ms"\n'
    )
    world.ours.start()
    code, text = world.deliver("unchecked", ALICE)
    if not accept:
        assert (code, text[:5]) == (451, "4.7.1"), text
        assert world.subjects(ALICE) == []
        return
    assert code == 250, text
    with world.imap(ALICE) as imap:
        (raw,) = imap.messages()
    results = raw.partition(b"Authentication-Results:")[2].partition(b"Received:")[0]
    assert b"spf=temperror" in results, raw
    assert b"dmarc=temperror" in results, raw


# --- peers and the log ---------------------------------------------------------------


@pytest.mark.parametrize("size", [2_000, 2_000_000])
def test_a_peer_that_drops_within_the_data_leaves_nothing(
    world: World, size: int
) -> None:
    for how in ("close", "reset", "half-close"):
        with Smtp(world.ours.port(25)) as smtp:
            smtp.ok("MAIL FROM:<>")
            smtp.ok(f"RCPT TO:<{ALICE}>")
            smtp.ok("DATA")
            smtp.send(message("never", size))
            if how == "reset":
                smtp.socket.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )
            elif how == "half-close":
                smtp.socket.shutdown(socket.SHUT_WR)
                assert b"250" not in smtp.rest()
    with world.imap(ALICE) as imap:
        imap.begin(f"APPEND INBOX {{{size + 1000}+}}\r\n".encode() + message("x", size))
    eventually(lambda: not any((world.ours.home / "data/spool").iterdir()))
    assert world.deliver("then", ALICE)[0] == 250
    assert world.subjects(ALICE) == ["then"]


def test_a_log_that_cannot_be_written_stops_nothing(world: World) -> None:
    """Standard error on a full disk."""
    world.ours.stop()
    log = world.ours.log_path
    log.unlink()
    log.symlink_to("/dev/full")
    try:
        world.ours.start()
        assert world.deliver("unlogged", ALICE)[0] == 250
        assert world.subjects(ALICE) == ["unlogged"]
        assert world.ours.stop() == 0
    finally:
        log.unlink()
