"""The embedded blob store: group commit, recovery, faults, collection."""

import asyncio
import dataclasses
import io
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.blobs.file import FileBlobStore, Options
from storage.blobs.file.layout import Layout
from storage.patience import Patience
from tests.lib.blobs import (
    SMALL,
    new_segment_is,
    opened,
    put_some,
    read_some,
    segment_files,
    verified,
)
from tests.lib.disk import Files, RecordingFiles

# --- group commit ---


@pytest.mark.parametrize(("producers", "most"), [(10, 0.3), (50, 0.1)])
def test_concurrent_puts_share_syncs(tmp_path, producers, most):
    async def run():
        async with opened(tmp_path, Options()) as store:

            async def produce():
                for _ in range(20):
                    await store.put(b"x" * 5000)

            await asyncio.gather(*(produce() for _ in range(producers)))
            stats = store.stats()
            assert stats.puts == producers * 20
            assert stats.syncs / stats.puts <= most

    asyncio.run(run())


def test_a_batch_waits_for_puts_that_were_promised(tmp_path):
    async def run():
        async with opened(tmp_path, Options(gather=5.0)) as store:

            async def keep_promise(number):
                await asyncio.sleep(number / 100)
                store.expect(-1)
                await store.put(b"%d" % number)

            store.expect(3)
            tasks = [asyncio.ensure_future(keep_promise(n)) for n in range(3)]
            async with asyncio.timeout(3):  # less than gather: the last one starts it
                await asyncio.gather(*tasks)
            assert store.stats().batches == 1

    asyncio.run(run())


def test_patience_ends_when_nobody_comes_and_returns_when_they_do():
    patience = Patience()
    for _ in range(20):
        if patience.waits():
            patience.learn(0)
    assert sum(patience.waits() for _ in range(160)) == 10
    for _ in range(4):
        patience.learn(5)
    assert patience.waits()


def test_the_loop_runs_while_a_slow_disk_syncs(tmp_path):
    class Slow(Files):
        def sync(self, fd):
            gate.wait(5)
            super().sync(fd)

    gate = threading.Event()

    async def run():
        gate.set()
        async with opened(tmp_path, files=Slow()) as store:
            gate.clear()
            first = asyncio.ensure_future(store.put(b"first"))
            await asyncio.sleep(0)
            others = [asyncio.ensure_future(store.put(b"x")) for _ in range(30)]
            await asyncio.sleep(0)
            assert not first.done()
            gate.set()
            await asyncio.gather(first, *others)
            assert store.stats().batches == 2

    asyncio.run(run())


# --- segments ---


def test_segments_are_sealed_and_indexed_again_from_themselves(tmp_path):
    async def run():
        async with opened(tmp_path) as store:
            refs = [await store.put(b"%d " % n * 300) for n in range(30)]
            infos = await store.segments()
            assert [info.sealed for info in infos[:-1]] == [True] * (len(infos) - 1)
            listed = [r for info in infos for r in await store.list_blobs(info.segment)]
            assert listed == refs
            return refs

    refs = asyncio.run(run())
    assert segment_files(tmp_path)[-1].endswith(".open")
    # without the database, the store file and the newest footer
    (tmp_path / "store").unlink()
    (tmp_path / "0000000000.gone").write_bytes(b"")  # a removal that was under way

    async def again():
        async with opened(tmp_path) as store:
            for number, ref in enumerate(refs):
                assert await store.read(ref) == b"%d " % number * 300

    asyncio.run(again())


@pytest.mark.parametrize(("where", "call"), [(Files, "size"), (Layout, "numbers")])
def test_one_that_is_sealed_while_it_is_looked_at_is_listed_and_whole(
    tmp_path, monkeypatch, where, call
):
    asked = getattr(where, call)

    async def run():
        async with opened(tmp_path, Options(segment_size=100)) as store:
            loop = asyncio.get_running_loop()
            await store.put(b"first")

            def answer_that_is_old(self, *args):
                answer = asked(self, *args)
                monkeypatch.undo()
                asyncio.run_coroutine_threadsafe(store.put(b"next"), loop).result()
                return answer

            monkeypatch.setattr(where, call, answer_that_is_old)
            if call == "numbers":
                (info,) = await store.segments()
                assert (info.segment, info.sealed) == (1, True)
            report = await store.verify_segment(1)
            assert (report.records, report.damage) == (1, ())
            assert segment_files(tmp_path) == ["0000000001.seg", "0000000002.open"]

    asyncio.run(run())


def test_a_large_blob_streams_through_a_segment_of_its_own(tmp_path):
    size = 24 << 20
    block = os.urandom(1 << 20)

    class Endless(io.RawIOBase):
        def __init__(self):
            self.at = 0

        def seek(self, offset, whence=0):
            self.at = offset

        def read(self, n=-1):
            n = min(n, len(block))
            self.at += n
            return block[:n]

    async def run():
        async with opened(tmp_path, Options(large=1 << 20)) as store:
            small = await store.put(b"small")
            tracemalloc.start()
            ref = await store.put_file(Endless(), size)
            count = 0
            async for chunk in store.stream(ref):
                count += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert count == ref.size == size
            assert peak < 6 << 20
            assert ref.segment != small.segment
            assert await store.read(ref, size - 10) == block[-10:]
            assert [i.sealed for i in await store.segments()] == [False, True]

    asyncio.run(run())


def test_descriptors_are_bounded(tmp_path):
    options = dataclasses.replace(SMALL, max_open=3)

    async def run():
        async with opened(tmp_path, options) as store:
            refs = [await store.put(b"%d " % n * 2000) for n in range(20)]
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(2):
                for ref in refs:
                    await store.read(ref)
            assert len(os.listdir("/proc/self/fd")) <= before + 3

    asyncio.run(run())


# --- recovery ---


@pytest.mark.parametrize("tail", [b"\0" * 300, b"MREC half a header", b"x" * 5000])
def test_a_torn_tail_is_cut(tmp_path, tail):
    refs = put_some(tmp_path)
    path = tmp_path / "0000000001.open"
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(tail)
    assert len(read_some(tmp_path, refs)) == 1
    assert path.stat().st_size == size + 96 + len(b"goes on")


def test_damage_in_the_middle_is_kept_and_not_appended_to(tmp_path):
    refs = put_some(tmp_path)
    path = tmp_path / "0000000001.open"
    data = bytearray(path.read_bytes())
    data[refs[1].offset + 100] ^= 1
    path.write_bytes(data)
    infos = asyncio.run(check_damaged(tmp_path, refs, 1))
    assert [info.sealed for info in infos] == [True, False]
    sealed = (tmp_path / "0000000001.seg").read_bytes()
    assert sealed[: len(data)] == bytes(data)


def test_a_last_record_that_is_whole_but_wrong_is_not_thrown_away(tmp_path):
    refs = put_some(tmp_path)
    path = tmp_path / "0000000001.open"
    data = bytearray(path.read_bytes())
    data[refs[2].offset + 100] ^= 1
    path.write_bytes(data)
    asyncio.run(check_damaged(tmp_path, refs, 2))
    assert (tmp_path / "0000000001.seg").read_bytes()[: len(data)] == bytes(data)


async def check_damaged(place, refs, bad):
    async with opened(place) as store:
        for number, ref in enumerate(refs):
            if number == bad:
                with pytest.raises(MailError) as caught:
                    await store.read(ref)
                assert caught.value.kind is Kind.UNAVAILABLE
            else:
                assert await store.read(ref) == b"%d" % number * 50
        await store.put(b"next")
        reports = await verified(store)
        assert [d.offset for d in reports[0].damage] == [refs[bad].offset]
        return await store.segments()


def test_a_sealed_segment_with_damage_is_reported_and_never_changed(tmp_path):
    refs = put_some(tmp_path, 200)
    path = tmp_path / "0000000001.seg"
    data = bytearray(path.read_bytes())
    data[refs[3].offset + 99] ^= 1
    data[-3] ^= 1
    path.write_bytes(data)

    async def run():
        async with opened(tmp_path) as store:
            reports = await verified(store)
            assert refs[3].offset in [d.offset for d in reports[0].damage]
            assert any("footer" in d.why for d in reports[0].damage)
            assert not any(report.damage for report in reports[1:])
            assert refs[3] in await store.list_blobs(1)
            assert len(await store.list_blobs(1)) == reports[0].records + 1

    asyncio.run(run())
    assert path.read_bytes() == bytes(data)


def test_a_segment_that_holds_nothing_is_removed(tmp_path):
    put_some(tmp_path)
    for number, data in ((7, b""), (8, b"x" * 40), (9, b"\0" * 70_000)):
        (tmp_path / f"{number:010d}.open").write_bytes(data)
    infos = read_some(tmp_path, [])
    assert [info.segment for info in infos] == [1]
    asyncio.run(new_segment_is(tmp_path, 10))


def test_sealing_that_a_crash_interrupted_is_completed(tmp_path):
    refs = put_some(tmp_path, 200)
    sealed = tmp_path / "0000000001.seg"
    unsealed = sealed.rename(tmp_path / "0000000001.open")
    files = RecordingFiles()

    async def recover():
        async with opened(tmp_path, files=files):
            pass

    asyncio.run(recover())
    calls = [op for op in files.log if str(unsealed) in op]
    assert [op[0] for op in calls] == ["sync", "rename"]
    read_some(tmp_path, refs)
    assert sealed.exists()


def test_threads_never_make_the_same_segment(tmp_path):
    layout = Layout(str(tmp_path), Files())
    layout.open(exclusive=True)

    def make(_):
        number, fd = layout.new_segment()
        os.close(fd)
        return number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(make, range(200)))
    layout.close()
    assert sorted(numbers) == list(range(1, 201))


def test_two_processes_may_share_a_store_that_is_opened_so(tmp_path):
    shared = dataclasses.replace(SMALL, exclusive=False)

    async def run():
        async with opened(tmp_path, shared) as one, opened(tmp_path, shared) as two:
            mine = [await one.put(b"%d" % n * 500) for n in range(20)]
            theirs = [await two.put(b"%d" % n * 700) for n in range(20)]
            assert not {r.segment for r in mine} & {r.segment for r in theirs}
            for n in range(20):
                assert await two.read(mine[n]) == b"%d" % n * 500
                assert await one.read(theirs[n]) == b"%d" % n * 700
            with pytest.raises(MailError, match="in use"):
                await FileBlobStore.open(str(tmp_path), SMALL)

    asyncio.run(run())


def test_an_unknown_format_or_lost_identity_is_refused(tmp_path):
    put_some(tmp_path)
    (tmp_path / "store").write_text("something else\n")
    with pytest.raises(MailError, match="unknown format"):
        put_some(tmp_path)
    (tmp_path / "store").unlink()
    (tmp_path / "0000000001.open").rename(tmp_path / "0000000001.seg")
    (tmp_path / "0000000001.seg").write_bytes(b"not a segment")
    with pytest.raises(MailError, match="identity"):
        put_some(tmp_path)
