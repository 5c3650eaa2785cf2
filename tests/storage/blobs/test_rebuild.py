"""What is stored is found again from the segments alone."""

from __future__ import annotations

import asyncio
import os
import shutil

from storage.blobs.file import Options
from storage.metadata import blobs as units
from storage.metadata.deliver import add_email
from tests.lib.blobs import opened, segment_files, verified
from tests.lib.shard import Shard, delivery

HOW = Options(segment_size=20_000, large=50_000, compression=1)
TRAILER = 32


def contents():
    """Return messages of all kinds: text, noise, large, empty, and one twice."""
    found = [b"Subject: %d\r\n\r\n" % n + b"text %d\r\n" % n * 100 for n in range(60)]
    return [*found, os.urandom(3000), os.urandom(70_000), b"", found[0]]


def test_segments_tell_what_they_hold_without_any_database(tmp_path):
    """Neither rows nor the store's own files are needed, nor a footer."""
    one, two = tmp_path / "one", tmp_path / "two"
    stored = contents()

    async def fill():
        async with opened(one, HOW) as store:
            for content in stored:
                await store.put(content)

    async def rebuild():
        async with opened(two, HOW) as store:
            reports = await verified(store)
            assert sum(report.records for report in reports) == len(stored)
            found = {}
            for info in await store.segments():
                for ref in await store.list_blobs(info.segment):
                    found[ref.hash] = ref
            assert {await store.read(ref) for ref in found.values()} == set(stored)
            return found

    asyncio.run(fill())
    two.mkdir()
    for name in segment_files(one):
        shutil.copy(one / name, two / name)
    sealed = next(name for name in segment_files(two) if name.endswith(".seg"))
    os.truncate(two / sealed, os.path.getsize(two / sealed) - TRAILER)
    found = asyncio.run(rebuild())
    # A shard that lost its rows of blobs gets them back.
    shard = Shard(1)
    for number, ref in enumerate(found.values(), 1):
        shard.run(add_email, delivery(number, blob=ref))
    shard.rows("DELETE FROM blob")
    shard.run(units.restore_blobs, tuple(found.values()), 0)
    assert shard.run(units.placed_blobs, tuple(found), 0) == found
