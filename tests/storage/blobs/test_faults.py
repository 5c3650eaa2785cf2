"""The embedded blob store on disks that fail, and its collection."""

import asyncio
import contextlib
import errno
import os

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.blobs.file import Options
from storage.blobs.file.layout import Layout
from storage.blobs.file.reader import Reader
from tests.lib.blobs import (
    new_segment_is,
    opened,
    put_some,
    read_some,
    segment_files,
    verified,
)
from tests.lib.disk import FaultyFiles, Files, FlakyFiles, RecordingFiles

# --- faults ---


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, Kind.STORAGE_FULL),
        (errno.EDQUOT, Kind.STORAGE_FULL),
        (errno.EIO, Kind.UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("call", ["write", "sync", "sync_directory", "create"])
def test_a_failing_disk_fails_all_that_wait_and_loses_nothing(
    tmp_path, call, code, kind
):
    files = FaultyFiles()
    options = Options(segment_size=700)

    async def run():
        async with opened(tmp_path, options, files=files) as store:
            before = [await store.put(b"%d" % n * 50) for n in range(4)]
            files.fail[call] = code
            files.partial = 100
            failed = await asyncio.gather(
                *(store.put(b"lost" * 200) for _ in range(10)), return_exceptions=True
            )
            if call in ("write", "sync"):
                assert {type(error) for error in failed} == {MailError}
            errors = [e for e in failed if isinstance(e, MailError)]
            assert errors
            assert {error.kind for error in errors} == {kind}
            files.fail.clear()
            after = [await store.put(b"%d" % n * 50) for n in range(4, 8)]
            return before + after

    refs = asyncio.run(run())
    infos = read_some(tmp_path, refs)
    assert infos

    async def verify():
        async with opened(tmp_path) as store:
            assert not [r for r in await verified(store) if r.damage]

    asyncio.run(verify())


def test_after_a_failed_sync_the_segment_is_not_written_again(tmp_path):
    files = FaultyFiles()

    async def run():
        async with opened(tmp_path, files=files) as store:
            first = await store.put(b"first")
            files.fail["sync"] = errno.EIO
            with pytest.raises(MailError):
                await store.put(b"lost")
            files.fail.clear()
            second = await store.put(b"second")
            assert second.segment > first.segment
            assert await store.read(first) == b"first"

    asyncio.run(run())


def test_a_segment_that_was_half_made_is_not_tried_for_again(tmp_path):
    class HalfMade(Files):
        def create(self, path):
            fd = super().create(path)
            if path.endswith(".open") and not failed:
                failed.append(path)
                os.close(fd)
                raise OSError(errno.EIO, "lost on the way")
            return fd

    failed = []

    async def run():
        async with opened(tmp_path, files=HalfMade()) as store:
            with pytest.raises(MailError):
                await store.put(b"lost")
            ref = await store.put(b"kept")
            assert await store.read(ref) == b"kept"

    asyncio.run(run())
    assert failed


def test_a_failed_write_leaves_the_segment_as_it_was(tmp_path):
    files = FaultyFiles()

    async def run():
        async with opened(tmp_path, files=files) as store:
            first = await store.put(b"first")
            files.fail["write"] = errno.ENOSPC
            files.partial = 50
            with pytest.raises(MailError):
                await store.put(b"lost" * 100)
            size = (tmp_path / "0000000001.open").stat().st_size
            assert size == first.offset + 96 + first.length
            files.fail.clear()
            second = await store.put(b"second")
            assert second.segment == first.segment

    asyncio.run(run())


def test_a_large_blob_that_fails_leaves_nothing_behind(tmp_path):
    files = FaultyFiles()

    async def run():
        async with opened(tmp_path, files=files) as store:
            await store.put(b"first")
            for call in ("write", "sync", "sync_directory", "rename"):
                files.fail = {call: errno.ENOSPC}
                with pytest.raises(MailError) as caught:
                    await store.put(b"x" * 60_000)
                assert caught.value.kind is Kind.STORAGE_FULL
            files.fail.clear()
            assert segment_files(tmp_path) == ["0000000001.open"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("call", "size"),
    [
        ("write", 6),
        *((call, 60_000) for call in ("write", "sync", "sync_directory", "rename")),
    ],
)
def test_a_segment_is_removed_before_another_process_may_take_it(tmp_path, call, size):
    class Watched(FaultyFiles):
        def close(self, fd):
            # Unlocked now: a process that starts would go on writing to what is left.
            links.append(os.fstat(fd).st_nlink)
            super().close(fd)

    links = []
    files = Watched()

    async def run():
        async with opened(tmp_path, files=files) as store:
            links.clear()
            files.fail = {call: errno.ENOSPC}
            with pytest.raises(MailError):
                await store.put(b"x" * size)
            assert links == [0]

    asyncio.run(run())


def test_a_read_that_fails_is_temporary(tmp_path):
    files = FaultyFiles()

    async def run():
        async with opened(tmp_path, files=files) as store:
            ref = await store.put(b"x" * 40_000)
            (tmp_path / "0000000001.open").rename(tmp_path / "hidden")
            with pytest.raises(MailError) as caught:
                await store.read(ref)
            assert caught.value.kind is Kind.UNAVAILABLE
            (tmp_path / "hidden").rename(tmp_path / "0000000001.open")
            assert await store.read(ref) == b"x" * 40_000

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_what_was_acknowledged_is_there(tmp_path, seed):
    files = FlakyFiles(seed, 0.1)

    async def run():
        told = []
        async with opened(tmp_path, files=files) as store:
            files.armed = True

            async def produce(name):
                for number in range(15):
                    content = b"%d.%d " % (name, number) * (number * 40)
                    with contextlib.suppress(MailError):
                        told.append((await store.put(content), content))

            await asyncio.gather(*(produce(name) for name in range(4)))
            files.armed = False
            for ref, content in told:
                assert await store.read(ref) == content
        return told

    told = asyncio.run(run())
    assert 10 < len(told) < 60

    async def check():
        async with opened(tmp_path) as store:
            for ref, content in told:
                assert await store.read(ref) == content

    asyncio.run(check())


# --- collection ---


def test_live_blobs_move_and_empty_segments_go(tmp_path):
    async def run():
        async with opened(tmp_path) as store:
            refs = [await store.put(b"%d " % n * 300) for n in range(30)]
            live = refs[::5]
            moved = await store.rewrite(live)
            assert set(moved) == set(live)
            assert len({ref.segment for ref in moved.values()}) == 1
            infos = await store.segments()
            newest = infos[-1].segment
            for info in infos:
                if info.sealed and info.segment != newest:
                    await store.remove_segment(info.segment)
            for ref in live:
                content = b"%d " % refs.index(ref) * 300
                assert await store.read(moved[ref]) == content
                if ref.segment != infos[-2].segment:
                    with pytest.raises(MailError):
                        await store.read(ref)
            with pytest.raises(MailError) as caught:
                await store.remove_segment(newest)
            assert caught.value.kind is Kind.INVALID
            assert await store.put(b"goes on")

    asyncio.run(run())
    assert not [name for name in segment_files(tmp_path) if name.endswith(".gone")]


def test_what_is_damaged_is_not_moved(tmp_path):
    refs = put_some(tmp_path, 5)
    path = tmp_path / "0000000001.open"
    data = bytearray(path.read_bytes())
    data[refs[1].offset + 97] ^= 1
    path.write_bytes(data)

    async def run():
        async with opened(tmp_path) as store:
            moved = await store.rewrite(refs)
            assert refs[1] not in moved
            assert len(moved) == 4
            assert await store.rewrite([refs[1]]) == {}

    asyncio.run(run())


def test_removal_that_was_interrupted_is_completed_and_its_number_not_reused(tmp_path):
    put_some(tmp_path)
    (tmp_path / "0000000005.gone").write_bytes(b"x" * 1000)
    asyncio.run(new_segment_is(tmp_path, 6))
    assert "0000000005.gone" not in segment_files(tmp_path)


def test_a_descriptor_is_closed_when_its_last_reader_has_done(tmp_path):
    put_some(tmp_path)
    reader = Reader(Layout(str(tmp_path), Files()), 8, 0)
    with reader.using(1) as fd:
        reader.forget(1)
        assert os.pread(fd, 4, 64) == b"MREC"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_removed_segment_is_renamed_for_good_before_its_blocks_go(tmp_path):
    files = RecordingFiles()

    async def run():
        async with opened(tmp_path, files=files) as store:
            for number in range(30):
                await store.put(b"%d " % number * 300)
            await store.remove_segment(1)

    asyncio.run(run())
    gone = next(op for op in files.log if op[0] == "rename" and ".gone" in op[2])
    renamed = files.log.index(gone)
    following = [op[0] for op in files.log[renamed : renamed + 3]]
    assert following == ["rename", "sync-directory", "remove"]
    # Before that, its number is given up for good: what is new gets another.
    assert files.log[renamed - 1] == ("sync", str(tmp_path / "allocate"))


def test_a_disk_that_fails_while_blocks_are_freed_is_told_as_such(tmp_path):
    files = FaultyFiles()

    async def run():
        async with opened(tmp_path, files=files) as store:
            for number in range(30):
                await store.put(b"%d " % number * 300)
            files.fail["remove"] = errno.EIO
            with pytest.raises(MailError) as caught:
                await store.remove_segment(1)
            assert caught.value.kind is Kind.UNAVAILABLE
            files.fail.clear()
        assert "0000000001.gone" in segment_files(tmp_path)
        async with opened(tmp_path) as store:
            assert 1 not in [info.segment for info in await store.segments()]
        assert "0000000001.gone" not in segment_files(tmp_path)

    asyncio.run(run())
