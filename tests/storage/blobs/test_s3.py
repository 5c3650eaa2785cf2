"""The blob store on S3: caches, segments, several writers."""

import asyncio
import dataclasses
import itertools
import os
import shutil

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from storage.blobs.s3 import S3BlobStore, layout
from storage.blobs.s3.cache import DiskCache, MemoryCache
from storage.blobs.s3.layout import Numbers, key_of, made_at, number_of
from storage.blobs.s3.url import size_of
from tests.lib import seaweedfs
from tests.lib.blobs import verified
from tests.lib.s3proxy import Proxy
from tests.lib.waiting import eventually

_prefixes = itertools.count(1)
MESSAGE = (
    b"Subject: hello\r\n\r\n" + b"the quick brown fox jumps over the dog\r\n" * 120
)


@pytest.fixture
def options():
    """A prefix of its own, uncompressed, so that sizes are known."""
    prefix = f"test-{os.getpid()}-{next(_prefixes)}"
    return dataclasses.replace(seaweedfs.options(prefix), compression=0)


def segments(options):
    """Return the sizes of the store's objects in the bucket."""
    found = seaweedfs.site().objects(options.bucket, f"{options.prefix}/segments/")
    return list(found.values())


# --- reading ---


def test_what_was_just_written_is_read_without_a_get(options, tmp_path):
    async def put():
        async with seaweedfs.opened(options, cache=str(tmp_path)) as store:
            puts = [store.put(b"%d" % n * 500) for n in range(30)]
            refs = await asyncio.gather(*puts)
            large = await store.put(bytes(5 << 20))
            before = store.bucket.gets
            for number, ref in enumerate(refs):
                assert await store.read(ref) == b"%d" % number * 500
            assert store.bucket.gets == before
            return refs, large

    async def again(gets):
        async with seaweedfs.opened(options, cache=str(tmp_path)) as store:
            before = store.bucket.gets
            for number, ref in enumerate(refs):
                assert await store.read(ref) == b"%d" % number * 500
            assert await store.read(large, 3 << 20, (3 << 20) + 5) == bytes(5)
            assert await store.read(large) == bytes(5 << 20)
            assert (store.bucket.gets == before) is not gets

    refs, large = asyncio.run(put())
    asyncio.run(again(False))
    shutil.rmtree(tmp_path)
    asyncio.run(again(True))
    asyncio.run(again(False))


def test_memory_alone_holds_what_was_just_written(options):
    async def run():
        async with seaweedfs.opened(options) as store:
            refs = await asyncio.gather(store.put(MESSAGE), store.put(b"x" * 300_000))
            before = store.bucket.gets
            assert await store.read(refs[0]) == MESSAGE
            assert await store.read(refs[1]) == b"x" * 300_000
            assert store.bucket.gets == before

    asyncio.run(run())


def test_who_comes_while_a_piece_is_on_its_way_waits_for_that(options):
    async def run():
        with Proxy(seaweedfs.site().port) as proxy:
            through = dataclasses.replace(options, endpoint=proxy.endpoint, memory=0)
            async with seaweedfs.opened(through) as store:
                ref = await store.put(MESSAGE)
                proxy.harm("GET", "late", match=".seg")
                first = asyncio.ensure_future(store.read(ref))
                await asyncio.to_thread(eventually, lambda: proxy.count("GET", ".seg"))
                assert not first.done()
                assert await store.read(ref) == await first == MESSAGE
                assert proxy.count("GET", ".seg") == 1

    asyncio.run(run())


def test_one_get_for_all_who_read_the_same(options):
    async def run():
        async with seaweedfs.opened(options, memory=0) as store:
            ref = await store.put(MESSAGE)
            before = store.bucket.gets
            for got in await asyncio.gather(*(store.read(ref) for _ in range(20))):
                assert got == MESSAGE
            assert store.bucket.gets == before + 1

    asyncio.run(run())


def test_neighbours_that_are_read_together_come_by_one_get(options):
    async def run():
        async with seaweedfs.opened(options, memory=0) as store:
            puts = [store.put(b"%d " % n + MESSAGE) for n in range(50)]
            refs = await asyncio.gather(*puts)
            before = store.bucket.gets
            got = await asyncio.gather(*(store.read(ref) for ref in refs))
            assert got == [b"%d " % n + MESSAGE for n in range(50)]
            assert store.bucket.gets == before + 1

    asyncio.run(run())


def test_a_reader_that_goes_away_harms_nobody(options):
    async def run():
        async with seaweedfs.opened(options, memory=0) as store:
            ref = await store.put(MESSAGE)
            reads = [asyncio.ensure_future(store.read(ref)) for _ in range(4)]
            await asyncio.sleep(0)
            reads[0].cancel()
            reads[2].cancel()
            got = await asyncio.gather(*reads, return_exceptions=True)
            assert got[1] == got[3] == MESSAGE

    asyncio.run(run())


def test_a_damaged_cache_is_fetched_again(options, tmp_path):
    async def run():
        async with seaweedfs.opened(options, cache=str(tmp_path), memory=0) as store:
            small = await store.put(MESSAGE)
            large = await store.put(bytes(5 << 20))
            fetched = await store.put(b"another" * 100)
        for path in (p for p in tmp_path.rglob("*") if p.is_file()):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        async with seaweedfs.opened(options, cache=str(tmp_path), memory=0) as store:
            before = store.bucket.gets
            assert await store.read(small) == MESSAGE
            assert await store.read(fetched) == b"another" * 100
            assert await store.read(large) == bytes(5 << 20)
            assert store.bucket.gets > before

    asyncio.run(run())


def test_the_cache_on_disk_is_bounded_and_keeps_what_is_used(tmp_path):
    cache = DiskCache(str(tmp_path), 16 * 100_000)
    cache.open()
    for number in range(300):
        cache.keep_piece(16, number, 0, bytes(4000))
        assert cache.piece(16, 0, 0) is not None  # in use all the time
    kept = [p.stat().st_size for p in tmp_path.rglob("*.rec")]
    assert sum(kept) < 130_000
    assert len(kept) > 15
    assert cache.piece(16, 299, 0) == bytes(4000)
    assert cache.piece(16, 5, 0) is None
    assert not cache.holds(60_000)  # more than half of a part
    cache.drop_segment(16)
    assert not list(tmp_path.rglob("*.rec"))


def test_a_cache_that_cannot_write_fails_nothing(options, tmp_path):
    async def run():
        async with seaweedfs.opened(options, cache=str(tmp_path / "c")) as store:
            shutil.rmtree(tmp_path / "c")
            (tmp_path / "c").write_text("in the way")
            ref = await store.put(MESSAGE)
            assert await store.read(ref) == MESSAGE
        with pytest.raises(MailError, match="cache directory"):
            async with seaweedfs.opened(options, cache=str(tmp_path / "c")):
                pass

    asyncio.run(run())


def test_the_cache_in_memory_is_bounded():
    cache = MemoryCache[int](1000)
    for number in range(20):
        cache.put(number, bytes(100))
        cache.get(0)
    assert cache.get(0) == cache.get(19) == bytes(100)
    assert cache.get(5) is None
    cache.put(99, bytes(251))
    assert cache.get(99) is None
    cache.drop_if(lambda key: key != 0)
    assert cache.get(19) is None
    assert cache.get(0) is not None


# --- segments ---


def test_segments_are_listed_rewritten_and_removed(options, tmp_path):
    async def run():
        async with seaweedfs.opened(options, cache=str(tmp_path)) as store:
            contents = [b"%d " % n * 300 for n in range(20)]
            refs = await asyncio.gather(*map(store.put, contents[:10]))
            refs += await asyncio.gather(*map(store.put, contents[10:]))
            infos = await store.segments()
            assert [info.sealed for info in infos] == [True, True]
            assert [info.octets for info in infos] == segments(options)
            listed = [r for info in infos for r in await store.list_blobs(info.segment)]
            assert listed == refs

            moved = await store.rewrite(refs[::3])
            assert list(moved) == refs[::3]
            assert len({ref.segment for ref in moved.values()}) == 1
            for info in infos:
                await store.remove_segment(info.segment)
            for number, ref in enumerate(refs[::3]):
                assert await store.read(moved[ref]) == contents[number * 3]
            with pytest.raises(MailError) as caught:
                await store.read(refs[1])
            assert caught.value.kind is Kind.UNAVAILABLE
            assert len(await store.segments()) == 1
            await store.remove_segment(infos[0].segment)  # again: no harm

    asyncio.run(run())


def test_rewriting_leaves_out_what_is_damaged_or_gone(options):
    async def run():
        async with seaweedfs.opened(options) as store:
            puts = [store.put(b"%d " % n * 300) for n in range(5)]
            refs = await asyncio.gather(*puts)
            gone = await store.put(b"gone")
            await store.remove_segment(gone.segment)
            beyond = dataclasses.replace(refs[4], offset=1 << 30)
            wrong = dataclasses.replace(refs[3], hash=bytes(32))
            moved = await store.rewrite([*refs[:3], beyond, wrong, gone])
            assert set(moved) == set(refs[:3])
            assert await store.rewrite([gone]) == {}
            assert await store.rewrite([]) == {}
            assert len(await store.segments()) == 2

    asyncio.run(run())


def harm_object(options, segment, change):
    """Change the octets of an object in the bucket."""
    client = seaweedfs.site().client()
    where = {
        "Bucket": options.bucket,
        "Key": f"{options.prefix}/{key_of(segment)}",
    }
    data = bytearray(client.get_object(**where)["Body"].read())
    change(data)
    client.put_object(**where, Body=bytes(data))


def test_damage_is_found_and_named(options):
    async def run():
        async with seaweedfs.opened(options, memory=0) as store:
            puts = [store.put(b"%d " % n * 300) for n in range(5)]
            refs = await asyncio.gather(*puts)
            sound = await store.put(MESSAGE)

            def change(data):
                data[refs[2].offset + 99] ^= 1
                data[-3] ^= 1

            harm_object(options, refs[0].segment, change)
            reports = await verified(store)
            assert len(reports) == 2
            offsets = [damage.offset for damage in reports[0].damage]
            assert refs[2].offset in offsets
            assert any("footer" in damage.why for damage in reports[0].damage)
            assert not reports[1].damage
            assert await store.list_blobs(refs[0].segment) == refs
            assert await store.read(refs[1]) == b"1 " * 300
            with pytest.raises(MailError) as caught:
                await store.read(refs[2])
            assert caught.value.kind is Kind.UNAVAILABLE
            assert await store.read(sound) == MESSAGE

    asyncio.run(run())


@pytest.mark.parametrize("left", [0, 20, 100])
def test_an_object_that_was_cut_holds_nobody_up(options, left):
    async def run():
        async with seaweedfs.opened(options, memory=0) as store:
            cut, sound = await store.put(b"cut"), await store.put(MESSAGE)

            def change(data):
                del data[left:]

            harm_object(options, cut.segment, change)
            assert await store.list_blobs(cut.segment) == []
            reports = await verified(store)
            assert [bool(report.damage) for report in reports] == [True, False]
            assert await store.rewrite([cut]) == {}
            with pytest.raises(MailError) as caught:
                await store.read(cut)
            assert caught.value.kind is Kind.UNAVAILABLE
            assert await store.read(sound) == MESSAGE

    asyncio.run(run())


@pytest.mark.parametrize("wrong", [1_000_000_000.0, 4_000_000_000.0])
def test_a_segment_is_as_young_as_the_younger_clock_says(options, wrong):
    class Wrong:
        def now(self):
            return wrong

    async def run():
        now = SystemClock().now()
        store = await S3BlobStore.open(options, Wrong())
        ref = await store.put(MESSAGE)
        (info,) = await store.segments()
        assert info.segment == ref.segment < 1 << 63
        assert info.modified >= max(wrong, now - 5)  # a listing has whole seconds
        await store.close()

    asyncio.run(run())


def test_numbers_grow_and_name_their_objects():
    numbers = Numbers(lambda: 1_800_000_000.5)
    made = [numbers.next() for _ in range(5000)]
    assert made == sorted(set(made))
    assert made[-1] < 1 << 63
    for number in (made[0], made[-1], 1, 999):
        assert number_of(key_of(number)) == number
    assert abs(made_at(made[0]) - 1_800_000_000.5) < 0.001
    for key in (
        "segments/abc.seg",
        "segments/00000000000000FF.seg",
        "segments/ffffffffffffffff.seg",
        "segments/00000000000000ff.new",
        "store",
    ):
        assert number_of(key) is None


def test_a_number_that_is_taken_is_left_alone(options, monkeypatch):
    numbers = iter([100, 100, 101, 100, 100, 100])
    monkeypatch.setattr(layout.Numbers, "next", lambda self: next(numbers))

    async def run():
        async with seaweedfs.opened(options) as store:
            first = await store.put(b"first")
            second = await store.put(b"second")
            assert (first.segment, second.segment) == (100, 101)
            with pytest.raises(MailError) as caught:
                await store.put(b"third")
            assert caught.value.kind is Kind.UNAVAILABLE
            assert await store.read(first) == b"first"
            assert await store.read(second) == b"second"

    asyncio.run(run())


# --- identity, several writers ---


def test_several_writers_share_a_bucket(options):
    async def run():
        opening = (seaweedfs.opened(options) for _ in range(3))
        one, two, three = (o for o in opening)
        async with one as a, two as b, three as c:
            stores = (a, b, c)
            puts = [s.put(b"%d" % n * 500) for n in range(20) for s in stores]
            refs = await asyncio.gather(*puts)
            assert len({ref.store for ref in refs}) == 1
            assert len({ref.segment for ref in refs}) == 3
            for index, ref in enumerate(refs):
                for store in stores:
                    assert await store.read(ref) == b"%d" % (index // 3) * 500

    asyncio.run(run())


def test_stores_that_are_made_at_once_agree_on_their_identity(options):
    async def run():
        async def make(_):
            async with seaweedfs.opened(options) as store:
                return (await store.put(b"x")).store

        assert len(set(await asyncio.gather(*map(make, range(4))))) == 1

    asyncio.run(run())


def test_a_lost_identity_is_read_from_the_segments(options):
    client = seaweedfs.site().client()
    store_object = {"Bucket": options.bucket, "Key": f"{options.prefix}/store"}

    async def put():
        async with seaweedfs.opened(options) as store:
            return await store.put(MESSAGE)

    async def read():
        async with seaweedfs.opened(options) as store:
            return await store.read(ref)

    ref = asyncio.run(put())
    client.delete_object(**store_object)
    assert asyncio.run(read()) == MESSAGE
    client.put_object(**store_object, Body=b"something else\n")
    with pytest.raises(MailError, match="unknown format"):
        asyncio.run(read())
    client.delete_object(**store_object)
    harm_object(options, ref.segment, lambda data: data.__setitem__(0, 0))
    with pytest.raises(MailError, match="identity"):
        asyncio.run(read())


def test_the_size_is_that_of_all_segments(options):
    async def run():
        async with seaweedfs.opened(options) as store:
            await asyncio.gather(*(store.put(MESSAGE) for _ in range(3)))
            await store.put(MESSAGE)
        url = seaweedfs.url(options.prefix)
        assert await size_of(url) == sum(segments(options)) > 4 * len(MESSAGE)

    asyncio.run(run())
