"""A daemon whose message bytes lie on S3: SeaweedFS, behind a proxy that does harm."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lib import daemon, seaweedfs
from tests.lib.clients import Imap, Jmap, Smtp
from tests.lib.s3proxy import Proxy
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(180)
ALICE, PASSWORD = "alice@example.test", "object pass"
NO_POLICY = "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
SENDERS, EACH = 20, 5


def message(token: str, size: int = 4000) -> bytes:
    line = b"x" * 70 + b"\r\n"
    head = f"From: sender@outside.test\r\nSubject: {token}\r\n\r\n".encode()
    return head + line * (size // len(line))


class World:
    """The daemon, the proxy before its store, and where that is."""

    def __init__(self, home: pathlib.Path) -> None:
        self.bucket = seaweedfs.site().bucket()
        self.proxy = Proxy(seaweedfs.site().port)
        self.ours = daemon.make(home / "ours", f"{ALICE}:{PASSWORD}")
        self.configure(self.bucket)

    def configure(self, bucket: str) -> None:
        place = seaweedfs.url(
            "mail", bucket=bucket, endpoint=self.proxy.endpoint, timeout="2s"
        )
        self.ours.override(f'{NO_POLICY}[storage]\nblobs = "{place}"\n')

    @property
    def cache(self) -> pathlib.Path:
        return self.ours.home / "data" / "cache"

    def deliver(self, token: str, size: int = 4000) -> tuple[int, str]:
        with Smtp(self.ours.port(25)) as smtp:
            return smtp.message(message(token, size), ALICE)

    def imap(self) -> Imap:
        return Imap(self.ours.port(143), ALICE, PASSWORD)

    def bodies(self) -> set[bytes]:
        """Return what IMAP says of each message, without the trace header."""
        with self.imap() as imap:
            return {raw[raw.index(b"From: ") :] for raw in imap.messages()}

    def objects(self) -> int:
        return len(seaweedfs.site().objects(self.bucket, "mail/segments/"))


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    made = World(tmp_path)
    with made.proxy:
        try:
            yield made
        finally:
            made.ours.stop()
        assert "Traceback" not in made.ours.log(), made.ours.log()


def test_mail_is_packed_and_read_through_every_door_and_after_a_restart(
    world: World,
) -> None:
    world.ours.start()
    tokens = [f"{sender}-{n}" for sender in range(SENDERS) for n in range(EACH)]

    def send(sender: int) -> list[int]:
        with Smtp(world.ours.port(25)) as smtp:
            return [
                smtp.message(message(f"{sender}-{n}"), ALICE)[0] for n in range(EACH)
            ]

    with concurrent.futures.ThreadPoolExecutor(SENDERS) as pool:
        codes = [code for some in pool.map(send, range(SENDERS)) for code in some]
    assert codes == [250] * len(tokens)
    assert world.objects() / len(tokens) < 0.3
    assert world.deliver("large", 6_000_000)[0] == 250
    sent = {message(token) for token in tokens} | {message("large", 6_000_000)}

    stats = world.ours.command("storage", "blobs", "stats")
    assert stats["segments"] == world.objects()
    assert stats["live_records"] == stats["records"] == stats["puts"] == len(sent)
    assert stats["syncs_per_put"] < 0.3
    assert world.ours.command("storage", "blobs", "verify")["damage"] == []

    before = world.proxy.count("GET", "segments")
    assert world.bodies() == sent
    assert world.proxy.count("GET", "segments") == before  # all from the cache
    assert world.ours.stop() == 0
    world.ours.start()
    assert world.bodies() == sent
    assert world.proxy.count("GET", "segments") == before

    world.ours.stop()
    shutil.rmtree(world.cache)
    world.ours.start()
    with Jmap(world.ours.port(80), ALICE, PASSWORD) as jmap:
        ids = jmap.ok("Email/query")["ids"]
        emails = jmap.ok("Email/get", ids=ids, properties=["blobId", "subject"])["list"]
        for email in emails[:10]:
            status, raw = jmap.download(email["blobId"])
            assert status == 200
            assert raw[raw.index(b"From: ") :] in sent
    assert world.proxy.count("GET", "segments") > before
    assert world.bodies() == sent
    assert world.ours.command("storage", "check")["faults"] == []


def test_mail_waits_outside_while_the_service_is_down(world: World) -> None:
    world.ours.start()
    assert world.deliver("first")[0] == 250
    world.proxy.close()
    with Smtp(world.ours.port(25)) as smtp:
        code, text = smtp.message(message("second"), ALICE)
        assert code == 451, text
        world.proxy.open()
        assert smtp.message(message("second"), ALICE)[0] == 250
    assert world.bodies() == {message("first"), message("second")}


def test_what_cannot_be_fetched_is_a_temporary_error(world: World) -> None:
    world.ours.start()
    assert world.deliver("first")[0] == 250
    world.ours.stop()
    shutil.rmtree(world.cache)
    world.ours.start()
    with world.imap() as imap:
        world.proxy.harm("GET", "NoSuchBucket", times=1000)
        imap.ok("SELECT INBOX")
        reply, _ = imap.run("UID FETCH 1:* (BODY.PEEK[])")
        assert reply.startswith(b"NO [UNAVAILABLE]"), reply
        world.proxy.heal()
        assert len(imap.ok("UID FETCH 1:* (BODY.PEEK[])")) == 1


def test_nothing_acknowledged_is_lost_by_a_kill(world: World) -> None:
    world.ours.start()
    acknowledged: list[str] = []

    def send(sender: int) -> None:
        try:
            with Smtp(world.ours.port(25)) as smtp:
                for n in range(1000):
                    token = f"{sender}-{n}"
                    if smtp.message(message(token), ALICE)[0] == 250:
                        acknowledged.append(token)
        except (OSError, EOFError):
            return

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sending = [pool.submit(send, sender) for sender in range(8)]
        eventually(lambda: len(acknowledged) > 40)
        world.ours.kill()
        for one in sending:
            one.result()
    shutil.rmtree(world.cache)
    world.ours.start()
    assert {message(token) for token in acknowledged} <= world.bodies()
    assert world.ours.command("storage", "check")["faults"] == []


def test_a_store_that_cannot_be_used_stops_the_start(world: World) -> None:
    world.configure("no-such-bucket")
    done = subprocess.run(
        [*daemon.COMMAND, "run", "--config", world.ours.config],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(daemon.ROOT)},
    )
    assert done.returncode == os.EX_TEMPFAIL
    said = done.stderr.splitlines()[-1]
    assert "s3://no-such-bucket/mail" in said
    assert world.proxy.endpoint in said
    assert "there is no bucket no-such-bucket; make it, or correct its name" in said
    assert seaweedfs.SECRET not in done.stderr
