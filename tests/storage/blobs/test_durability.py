"""What was acknowledged survives kill -9 and a power cut (DESIGN, invariant 1)."""

import asyncio
import contextlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest

from storage.blobs.file import FileBlobStore, Options
from tests.lib import blob_writer
from tests.lib.blobs import verified
from tests.lib.disk import PowerCut, RecordingFiles

ROOT = pathlib.Path(__file__).parents[3]
SMALL = Options(segment_size=3000, large=2500)


async def read_all(directory, acknowledged):
    """Open a store as after a restart and read each blob back."""
    store = await FileBlobStore.open(str(directory), SMALL)
    try:
        for ref, content in acknowledged:
            assert await store.read(ref) == content
        again = await store.put(b"still in working order")
        assert await store.read(again) == b"still in working order"
    finally:
        await store.close()


def start_writer(directory, producers=8, count=0, prefix=()):
    module = [sys.executable, "-m", "tests.lib.blob_writer"]
    return subprocess.Popen(
        [*prefix, *module, str(directory), str(producers), str(count)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )


@contextlib.contextmanager
def killed_at_last(process):
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_acknowledged_blobs_survive_kill_9(tmp_path):
    rng = random.Random(11)
    acknowledged = []
    for _ in range(5):
        with killed_at_last(start_writer(tmp_path)) as writer:
            lines = [writer.stdout.readline() for _ in range(rng.randrange(20, 400))]
            writer.kill()
            lines += writer.stdout.readlines()
        acknowledged += [blob_writer.parse(x) for x in lines if x.endswith(b"\n")]

    async def check():
        store = await FileBlobStore.open(str(tmp_path), blob_writer.OPTIONS)
        for seed, ref in acknowledged:
            assert await store.read(ref) == blob_writer.content(seed)
        reports = await verified(store)
        assert not [report for report in reports if report.damage]
        assert len(reports) > 5
        await store.close()

    asyncio.run(check())


def record(directory):
    """Store blobs of all sizes concurrently; return the log with what was told."""
    files = RecordingFiles()
    rng = random.Random(3)

    async def run():
        store = await FileBlobStore.open(str(directory), SMALL, files=files)

        async def produce(name):
            for number in range(10):
                size = rng.choice((0, 10, 300, 900, 2600))
                content = b"%d.%d " % (name, number) + rng.randbytes(size)
                ref = await store.put(content)
                files.note("ack", ref, content)

        await asyncio.gather(*(produce(name) for name in range(4)))
        refs = [op[1] for op in files.log if op[0] == "ack"]
        copies = await store.rewrite(refs[:4])
        for op in [op for op in files.log if op[0] == "ack"]:
            if op[1] in copies:
                files.note("ack", copies[op[1]], op[2])
        await store.close()

    asyncio.run(run())
    return files.log


def replay_all(tmp_path, seed):
    """Cut the power after each call and read back what had been acknowledged."""
    source = tmp_path / "source"
    log = record(source)
    assert sum(op[0] == "create" for op in log) > 3  # several segments
    disk = PowerCut()
    acknowledged = []

    async def run():
        for position, op in enumerate(log):
            disk.replay(op)
            if op[0] == "ack":
                acknowledged.append(op[1:])
            target = tmp_path / f"cut{position}"
            target.mkdir()
            rng = random.Random(seed + position) if seed else None
            disk.restore(source, target, rng)
            if acknowledged:
                await read_all(target, acknowledged)
            shutil.rmtree(target)

    asyncio.run(run())
    assert len(acknowledged) == 44


def test_dropping_what_was_not_synced_loses_nothing(tmp_path):
    replay_all(tmp_path, 0)


@pytest.mark.parametrize("seed", [1000, 2000])
def test_keeping_parts_of_what_was_not_synced_loses_nothing(tmp_path, seed):
    replay_all(tmp_path, seed)


def test_the_replay_notices_a_missing_sync(tmp_path):
    """The proof can fail: without its syncs the same log loses blobs."""
    source, target = tmp_path / "source", tmp_path / "cut"
    log = record(source)
    names = [op for op in log if op[0] != "sync"]
    disk = PowerCut()
    for op in names:
        disk.replay(op)
    target.mkdir()
    disk.restore(source, target)
    acknowledged = [op[1:] for op in log if op[0] == "ack"]
    with pytest.raises(Exception, match="UNAVAILABLE"):
        asyncio.run(read_all(target, acknowledged))


CALL = re.compile(
    r"^\d+ (?:\S+ )?(openat|pwrite(?:64|v2?)|fdatasync|fsync|write|rename)\((.*)$"
)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_traced_order_is_write_sync_acknowledge(tmp_path):
    trace = tmp_path / "trace"
    calls = "trace=openat,pwrite64,pwritev,pwritev2,fdatasync,fsync,write,rename"
    strace = ("strace", "-f", "-y", "-e", calls, "-o", str(trace))
    blobs = tmp_path / "blobs"
    with killed_at_last(start_writer(blobs, 1, 120, strace)) as writer:
        out, _ = writer.communicate(timeout=60)
    assert out.count(b"ack") == 120
    made, dirty, acks, writes = set(), set(), 0, 0
    for call, rest in events(trace.read_text()):
        segment = re.search(r"(\d{10}\.\w+)", rest)
        if call == "openat" and segment and "O_CREAT" in rest:
            made.add(segment[1])
        elif call.startswith("pwrite") and segment:
            dirty.add(segment[1])
            writes += 1
        elif call == "fdatasync" and segment:
            dirty.discard(segment[1])
        elif call == "fsync" and rest.split(">")[0].endswith("blobs"):
            made.clear()
        elif call == "write" and '"ack ' in rest:
            acks += 1
            assert not dirty, f"acknowledged before it was synced: {dirty}"
            assert not made, f"acknowledged before its name was durable: {made}"
    assert acks == 120
    assert writes >= 120


def events(trace):
    """Yield (call, arguments), a call that another thread interrupts at its end."""
    unfinished = {}
    for line in trace.splitlines():
        pid = line.split(None, 1)[0]
        resumed = re.search(r"<\.\.\. (\w+) resumed>", line)
        if resumed and pid in unfinished:
            yield resumed[1], unfinished.pop(pid)
            continue
        match = CALL.match(re.sub(r"^(\d+) +", r"\1 ", line))
        if not match:
            continue
        if "<unfinished" in line and match[1] in ("fdatasync", "fsync"):
            unfinished[pid] = match[2]
        else:
            yield match[1], match[2]


def test_a_second_process_is_kept_out(tmp_path):
    with killed_at_last(start_writer(tmp_path)) as writer:
        writer.stdout.readline()
        with pytest.raises(Exception, match="in use"):
            asyncio.run(read_all(tmp_path, []))
    asyncio.run(read_all(tmp_path, []))


def test_the_directory_is_private(tmp_path):
    asyncio.run(read_all(tmp_path / "new" / "blobs", []))
    assert os.stat(tmp_path / "new" / "blobs").st_mode & 0o077 == 0
