"""What every blob engine promises (``storage.api.BlobStore``)."""

import asyncio
import dataclasses
import functools
import hashlib
import io
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailserverd.core.errors import Kind, MailError
from tests.lib.blob_engines import DAMAGE, ENGINES
from tests.lib.blobs import verified
from tests.lib.failing import MODES, FailingBlobStore

TEXT = b"Subject: hello\r\n\r\n" + b"the quick brown fox jumps over the dog\r\n" * 300


@pytest.fixture(params=ENGINES)
def engine(request, tmp_path):
    """Return a function that opens the engine on the same place each time."""
    return functools.partial(ENGINES[request.param], tmp_path / "blobs")


def on(engine, work):
    """Run ``work(store)`` on an open store and return its result."""

    async def run():
        async with engine() as store:
            return await work(store)

    return asyncio.run(run())


def test_what_was_put_is_read_back_also_after_a_restart(engine):
    contents = [b"", b"x", b"\0\r\n\xff" * 100, TEXT, os.urandom(90_000)]

    async def put(store):
        return [await store.put(content) for content in contents]

    async def read(store):
        return [await store.read(ref) for ref in refs]

    refs = on(engine, put)
    assert on(engine, read) == contents
    for ref, content in zip(refs, contents, strict=True):
        assert ref.hash == hashlib.sha256(content).digest()
        assert ref.size == len(content)
        assert len(ref.store) == 16


def test_chunks_are_one_blob(engine):
    async def work(store):
        chunks = [b"a" * 1000, memoryview(TEXT)[5:], b"", b"end"]
        ref = await store.put(chunks)
        assert await store.read(ref) == b"".join(chunks)
        assert ref.hash == hashlib.sha256(b"".join(chunks)).digest()
        assert await store.read(await store.put([])) == b""

    on(engine, work)


def test_concurrent_puts_each_get_their_own(engine):
    contents = [b"%d " % n * (n * 7 % 900) for n in range(300)]

    async def work(store):
        refs = await asyncio.gather(*map(store.put, contents))
        assert len({(ref.segment, ref.offset) for ref in refs}) == 300
        assert await asyncio.gather(*map(store.read, refs)) == contents

    on(engine, work)


@pytest.mark.parametrize("size", [0, 10, 100_000, 399_999, 400_000, 3_000_000])
def test_a_file_is_stored_without_its_name(engine, size):
    content = os.urandom(size)

    async def work(store):
        file = io.BytesIO(content + b"more that does not belong")
        file.seek(3)
        ref = await store.put_file(file, size)
        assert ref.hash == hashlib.sha256(content).digest()
        assert await store.read(ref) == content
        chunks = [chunk async for chunk in store.stream(ref)]
        assert b"".join(chunks) == content
        assert max(map(len, chunks), default=0) <= 256 * 1024

    on(engine, work)


def test_a_file_shorter_than_said_is_refused(engine):
    async def work(store):
        for size in (11, 500_000):
            with pytest.raises(MailError) as caught:
                await store.put_file(io.BytesIO(b"0123456789"), size)
            assert caught.value.temporary
        assert await store.read(await store.put(b"next")) == b"next"

    on(engine, work)


@pytest.mark.parametrize("content", [TEXT, os.urandom(12_000), os.urandom(600_000)])
def test_ranges_are_slices(engine, content):
    ends = [0, 1, 17, 6000, len(content) - 1, len(content), len(content) + 9, None]

    async def work(store):
        ref = await store.put(content)
        for start in ends[:-1]:
            for end in ends:
                want = content[start:end]
                assert await store.read(ref, start, end) == want
                got = [chunk async for chunk in store.stream(ref, start, end)]
                assert b"".join(got) == want

    on(engine, work)


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(st.lists(st.binary(max_size=2000), max_size=8))
def test_any_bytes_come_back(engine, contents):
    async def work(store):
        refs = await asyncio.gather(*map(store.put, contents))
        assert [await store.read(ref) for ref in refs] == contents

    on(engine, work)


def test_a_wrong_address_is_an_error_never_other_bytes(engine):
    async def work(store):
        puts = (store.put(TEXT[:900]), store.put(b"second" * 9))
        first, ref = await asyncio.gather(*puts)  # into the same segment
        assert first.segment == ref.segment
        for wrong in (
            dataclasses.replace(ref, segment=999),
            dataclasses.replace(ref, offset=first.offset),
            dataclasses.replace(ref, offset=1 << 40),
            dataclasses.replace(ref, hash=bytes(32)),
            dataclasses.replace(ref, store=bytes(16)),
            dataclasses.replace(ref, key=7),
        ):
            with pytest.raises(MailError) as caught:
                await store.read(wrong)
            assert caught.value.kind is Kind.UNAVAILABLE
            with pytest.raises(MailError):
                async for _ in store.stream(wrong):
                    pass

    on(engine, work)


def test_a_caller_that_goes_away_harms_nobody(engine):
    async def work(store):
        tasks = [asyncio.ensure_future(store.put(b"%d" % n)) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number in range(1, 20, 2):
            assert await store.read(results[number]) == b"%d" % number
        assert await store.read(await store.put(b"later")) == b"later"

    on(engine, work)


def test_promises_never_hold_a_put_up_for_long(engine):
    async def work(store):
        store.expect(5)
        async with asyncio.timeout(5):
            for number in range(30):
                await store.put(b"%d" % number)
        store.expect(-9)  # more than were promised: no harm
        await store.put(b"end")

    on(engine, work)


def test_after_close_a_put_is_refused(engine):
    async def work(store):
        await store.close()
        for late in (b"late", bytes(900_000)):
            with pytest.raises(MailError) as caught:
                await store.put(late)
            assert caught.value.kind is Kind.UNAVAILABLE

    on(engine, work)


def test_what_is_under_way_is_finished_by_close(engine):
    small, large = b"small" * 100, os.urandom(900_000)

    async def put(store):
        tasks = [asyncio.ensure_future(store.put(data)) for data in (small, large)]
        await asyncio.sleep(0)
        await store.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    async def read(store):
        for ref, data in zip(refs, (small, large), strict=True):
            if not isinstance(ref, MailError):
                assert await store.read(ref) == data

    refs = on(engine, put)
    assert not isinstance(refs[0], MailError)  # the large one may have come too late
    on(engine, read)


def test_segments_are_listed_packed_anew_and_removed(engine):
    contents = [os.urandom(5000) for _ in range(30)]

    async def put(store):
        return [await store.put(content) for content in contents]

    async def pack(store):
        infos = await store.segments()
        assert [info.segment for info in infos] == sorted({r.segment for r in refs})
        for info in infos:
            here = [ref for ref in refs if ref.segment == info.segment]
            assert await store.list_blobs(info.segment) == here
            assert info.octets > sum(ref.length for ref in here)
        old = [info.segment for info in infos if info.sealed][:2]
        kept = [ref for ref in refs if ref.segment in old][::2]
        moved = await store.rewrite(kept, 10_000_000)
        assert set(moved) == set(kept)
        for segment in old:
            await store.remove_segment(segment)
        return old, moved

    async def look(store):
        for number, ref in enumerate(refs):
            if ref in moved:
                assert moved[ref].hash == ref.hash
                assert await store.read(moved[ref]) == contents[number]
            elif ref.segment not in old:
                assert await store.read(ref) == contents[number]
            if ref.segment in old:
                with pytest.raises(MailError) as caught:
                    await store.read(ref)
                assert caught.value.kind is Kind.UNAVAILABLE
        reports = await verified(store)
        assert not any(report.damage for report in reports)
        assert not {report.segment for report in reports} & set(old)
        gone = len([ref for ref in refs if ref.segment in old]) - len(moved)
        assert sum(report.records for report in reports) == len(refs) - gone
        report = await store.verify_segment(reports[0].segment)
        assert report == reports[0]

    refs = on(engine, put)
    old, moved = on(engine, pack)
    assert old
    on(engine, look)


@pytest.fixture
def damage(request, tmp_path):
    """Return a function that changes an octet of a record; nobody has it open."""
    name = request.node.callspec.params["engine"]
    return functools.partial(DAMAGE[name], tmp_path / "blobs")


def test_damage_is_unavailable_listed_reported_and_never_copied(engine, damage):
    contents = [os.urandom(5000) for _ in range(24)]

    async def put(store):
        return [await store.put(content) for content in contents]

    async def look(store):
        with pytest.raises(MailError) as caught:
            await store.read(bad)
        assert caught.value.kind is Kind.UNAVAILABLE
        with pytest.raises(MailError):
            async for _ in store.stream(bad):
                pass
        here = [ref for ref in refs if ref.segment == bad.segment]
        assert await store.list_blobs(bad.segment) == here
        reports = await verified(store)
        assert [r.segment for r in reports if r.damage] == [bad.segment]
        (report,) = (r for r in reports if r.damage)
        assert bad.offset in [one.offset for one in report.damage]
        assert await store.verify_segment(bad.segment) == report
        moved = await store.rewrite(here)
        assert set(moved) == set(here) - {bad}
        for ref, place in moved.items():
            assert await store.read(place) == contents[refs.index(ref)]

    refs = on(engine, put)
    bad = refs[1]
    damage(bad)
    on(engine, look)


def test_a_segment_that_is_written_is_not_removed(engine):
    async def work(store):
        ref = await store.put(TEXT)
        infos = {info.segment: info for info in await store.segments()}
        if not infos[ref.segment].sealed:
            with pytest.raises(MailError) as caught:
                await store.remove_segment(ref.segment)
            assert caught.value.kind is Kind.INVALID
        assert await store.read(ref) == TEXT

    on(engine, work)


def test_it_counts_puts_and_what_makes_them_durable(engine):
    async def work(store):
        before = store.stats()
        await asyncio.gather(*(store.put(b"%d" % n) for n in range(100)))
        after = store.stats()
        assert after.puts - before.puts == 100
        assert 1 <= after.batches - before.batches <= 20
        assert 1 <= after.syncs - before.syncs <= 40  # a new segment takes some

    on(engine, work)


def test_a_rate_slows_copying_down(engine):
    async def work(store):
        refs = [await store.put(os.urandom(5000)) for _ in range(4)]
        began = time.monotonic()
        assert len(await store.rewrite(refs, 100_000)) == 4
        assert 0.15 < time.monotonic() - began < 5  # 20 KB
        assert not await store.rewrite([])

    on(engine, work)


def test_closing_does_not_wait_for_a_slow_copy(engine):
    async def run():
        async with engine() as store:
            refs = [await store.put(os.urandom(5000)) for _ in range(4)]
            copying = asyncio.ensure_future(store.rewrite(refs, 500))
            await asyncio.sleep(0)
            began = time.monotonic()
        assert time.monotonic() - began < 8  # the copy takes 40 s
        with pytest.raises(MailError) as caught:
            await copying
        assert caught.value.kind is Kind.UNAVAILABLE

    asyncio.run(run())


class Counting:
    """Lets a store be asked for everything, and says what each answer was."""

    def __init__(self, failing, ref):
        self.failing = failing
        self.ref = ref

    async def streamed(self):
        return b"".join([chunk async for chunk in self.failing.stream(self.ref)])

    async def calls(self):
        """Yield each answer, or None where it was a temporary error."""
        failing, ref = self.failing, self.ref
        for call in (
            lambda: failing.put(TEXT),
            lambda: failing.put_file(io.BytesIO(TEXT), len(TEXT)),
            lambda: failing.read(ref),
            self.streamed,
            failing.segments,
            lambda: failing.list_blobs(ref.segment),
            lambda: failing.verify_segment(ref.segment),
            lambda: failing.rewrite([ref]),
        ):
            try:
                yield await call()
            except MailError as error:
                assert error.temporary
                yield None


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_engine_fails_with_a_temporary_kind(engine, mode):
    """What it does answer is true: nothing is missing, nothing is empty."""

    async def work(store):
        ref = await store.put(TEXT)
        failing = FailingBlobStore(store, mode)
        failing.delay = 0.003
        for _ in range(3):
            answers = [one async for one in Counting(failing, ref).calls()]
            assert all(answers) or mode != "slowly"
            assert not any(answers) or mode in {"slowly", "sometimes"}
            assert answers[2] in {None, TEXT}
            assert answers[3] in {None, TEXT}
            assert answers[5] is None or ref in answers[5]
            for put in answers[:2]:
                assert put is None or await store.read(put) == TEXT
        assert failing.failed
        assert await store.read(ref) == TEXT

    on(engine, work)
