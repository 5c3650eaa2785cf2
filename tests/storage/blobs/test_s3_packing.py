"""The blob store on S3: which puts go into one object, and the URL's options."""

import asyncio
import base64
import dataclasses
import io
import itertools
import os
import pathlib
import threading
import tracemalloc

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.blobs.s3 import layout
from storage.blobs.s3 import store as store_module
from storage.blobs.s3.options import parse
from storage.blobs.s3.packer import Packer
from storage.segments import ZSTD, prepare, prepare_packed
from tests.lib import seaweedfs
from tests.lib.s3proxy import Proxy
from tests.lib.waiting import eventually

_prefixes = itertools.count(1)
MESSAGE = (
    b"Subject: hello\r\n\r\n" + b"the quick brown fox jumps over the dog\r\n" * 120
)


@pytest.fixture
def options():
    """A prefix of its own, uncompressed, so that sizes are known."""
    prefix = f"packing-{os.getpid()}-{next(_prefixes)}"
    return dataclasses.replace(seaweedfs.options(prefix), compression=0)


def segments(options):
    """Return the sizes of the store's objects in the bucket."""
    found = seaweedfs.site().objects(options.bucket, f"{options.prefix}/segments/")
    return list(found.values())


# --- packing ---


@pytest.mark.parametrize("promised", [False, True])
def test_concurrent_senders_share_objects(options, promised):
    async def send(store, number):
        for count in range(10):
            if promised:
                store.expect(1)
                await asyncio.sleep(0.001)
                store.expect(-1)
            await store.put(b"%d %d " % (number, count) + MESSAGE)

    async def run():
        async with seaweedfs.opened(options) as store:
            await asyncio.gather(*(send(store, number) for number in range(20)))
            stats = store.stats()
            assert stats.puts == 200
            assert stats.syncs == stats.batches == len(segments(options))
            assert stats.syncs / stats.puts < 0.3

    asyncio.run(run())


def test_a_lone_put_does_not_wait_for_the_window(options):
    async def run():
        async with seaweedfs.opened(options, window=30.0) as store:
            async with asyncio.timeout(10):
                for _ in range(3):
                    await store.put(MESSAGE)
            assert store.stats().batches == 3

    asyncio.run(run())


def test_a_batch_waits_for_puts_that_were_promised(options):
    async def run():
        async with seaweedfs.opened(options, window=30.0) as store:

            async def keep_promise(number):
                await asyncio.sleep(number / 100)
                store.expect(-1)
                return await store.put(b"%d" % number)

            store.expect(3)
            tasks = [asyncio.ensure_future(keep_promise(n)) for n in range(3)]
            async with asyncio.timeout(2.5):  # less than a tenth of the window
                refs = await asyncio.gather(*tasks)
            assert len({ref.segment for ref in refs}) == 1
            assert store.stats().syncs == 1

    asyncio.run(run())


def test_objects_are_written_beside_a_slow_one(options):
    async def run():
        with Proxy(seaweedfs.site().port) as proxy:
            through = dataclasses.replace(options, endpoint=proxy.endpoint)
            async with seaweedfs.opened(through, window=0.05) as store:
                proxy.harm("PUT", "late")
                slow = asyncio.ensure_future(store.put(b"slow"))
                await asyncio.to_thread(eventually, lambda: proxy.count("PUT", ".seg"))
                await store.put(b"quick")
                assert not slow.done()
                await slow

    asyncio.run(run())


def test_what_takes_long_to_compress_does_not_run_on_the_loop(options, monkeypatch):
    contents = [base64.b64encode(os.urandom(65_000 - n)) for n in range(12)]
    threads = {}

    def noting(chunks, level):
        payload = prepare_packed(chunks, level)
        threads[payload.hash] = threading.current_thread().name
        return payload

    async def run():
        monkeypatch.setattr(store_module, "prepare_packed", noting)
        async with seaweedfs.opened(options, compression=1, cache="") as store:
            here = threading.current_thread().name
            refs = await asyncio.gather(*map(store.put, [*contents, MESSAGE]))
            for ref, content in zip(refs, [*contents, MESSAGE], strict=True):
                assert ref.codec == ZSTD
                assert await store.read(ref) == content
                own = threads[ref.hash].startswith("blobs-work")
                assert own == (ref.size > 64 * 1024)
                assert own or threads[ref.hash] == here

    asyncio.run(run())


def test_a_put_that_is_compressed_joins_those_that_are_ready(options):
    content = base64.b64encode(os.urandom(150_000))

    async def run():
        async with seaweedfs.opened(options, compression=1, window=30.0) as store:
            async with asyncio.timeout(2.5):  # less than a tenth of the window
                refs = await asyncio.gather(store.put(content), store.put(MESSAGE))
            assert refs[0].segment == refs[1].segment
            assert store.stats().syncs == 1

    asyncio.run(run())


def packing(size, parallel, check):
    """Put once, then five times ``size`` octets while that is being written; run
    ``check(written)`` meanwhile, and return the sizes of all batches."""
    written = []

    async def run():
        release = asyncio.Event()

        async def write(payloads):
            written.append(len(payloads))
            await release.wait()
            return list(payloads)

        packer = Packer(write, window=60.0, octets=10_000, parallel=parallel)
        puts = [asyncio.ensure_future(packer.put(prepare([b"1"])))]
        await asyncio.sleep(0)
        for _ in range(5):
            puts.append(asyncio.ensure_future(packer.put(prepare([b"x" * size]))))
            await asyncio.sleep(0.01)
        check(list(written))
        release.set()
        async with asyncio.timeout(20):
            await asyncio.gather(*puts)
        await packer.close()
        return written

    return asyncio.run(run())


def test_puts_wait_for_the_object_that_is_being_written():
    def check(written):
        assert written == [1]

    assert packing(100, 4, check) == [1, 5]


def test_a_full_batch_does_not_wait():
    def check(written):
        assert written == [1, 2]  # the rest waits for one of the two

    assert packing(4000, 2, check) == [1, 2, 2, 1]


def test_a_large_blob_streams_through_an_object_of_its_own(options):
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
        async with seaweedfs.opened(options, memory=4 << 20, large=1 << 20) as store:
            small = await store.put(b"small")
            tracemalloc.start()
            ref = await store.put_file(Endless(), size)
            count = 0
            async for chunk in store.stream(ref):
                count += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert count == ref.size == size
            assert peak < 12 << 20  # the cache, and a few pieces; the blob has 24
            assert ref.segment != small.segment
            assert await store.read(ref, size - 10) == block[-10:]
            assert len(await store.segments()) == 2

    asyncio.run(run())


# --- the URL ---


def test_a_url_says_everything(tmp_path):
    options = parse(
        "s3://mail/a/b/?endpoint=http://127.0.0.1:8333/&region=eu&window=20ms&verify=1"
        "&cache_size=2GiB&memory=1MiB&compression=3&timeout=3s&credentials=/c&profile=p",
        str(tmp_path),
    )
    assert (options.bucket, options.prefix) == ("mail", "a/b")
    assert options.endpoint == "http://127.0.0.1:8333"
    assert (options.region, options.window, options.verify) == ("eu", 0.02, True)
    assert (options.cache_size, options.memory) == (2 << 30, 1 << 20)
    assert (options.compression, options.timeout) == (3, 3.0)
    assert (options.credentials, options.profile) == ("/c", "p")
    assert options.cache == str(tmp_path)
    assert parse("s3://mail?cache=none", "/scratch").cache == ""
    assert parse("s3://mail?cache=/else", "/scratch").cache == "/else"
    assert parse("s3://mail").place == "s3://mail at Amazon S3"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3:///prefix", "must name a bucket"),
        ("s3://b", "must name a bucket"),
        ("s3://mail?colour=red", 'no option "colour"'),
        ("s3://mail?window=soon", "such as"),
        ("s3://mail?window=90s", "not be more"),
        ("s3://mail?timeout=1ms", "not be less"),
        ("s3://mail?endpoint=ftp://x", "must be a URL"),
        ("s3://mail?endpoint=http://key:secret@x", "must be a URL"),
        ("s3://mail?verify=yes", "0 or 1"),
        ("s3://mail?compression=99", "from 0 to 19"),
        ("s3://mail?cache=", "empty"),
    ],
)
def test_a_mistake_in_a_url_is_named(url, why):
    with pytest.raises(MailError, match=why) as caught:
        parse(url)
    assert caught.value.kind is Kind.INVALID


def test_nothing_of_amazon_is_loaded_before_a_bucket_is_used():
    source = pathlib.Path(layout.__file__).parent
    for path in source.glob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.startswith(("import boto", "from boto")), path
