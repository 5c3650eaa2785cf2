"""A process that stores blobs until it is killed, and says which were acknowledged.

``python -m tests.lib.blob_writer DIRECTORY PRODUCERS COUNT [shared]``: after each put
one line ``ack SEED SEGMENT OFFSET LENGTH SIZE HASH STORE`` on standard output.  With
``shared`` others may write to the same directory.
"""

import asyncio
import dataclasses
import itertools
import os
import random
import sys

from mailserverd.core.log import configure
from storage.blobs.file import FileBlobStore, Options
from storage.model import BlobRef

OPTIONS = Options(segment_size=100_000, large=60_000, compression=1)
SHARED = dataclasses.replace(OPTIONS, exclusive=False)


def content(seed):
    """Return the bytes that belong to a seed."""
    rng = random.Random(seed)
    size = 80_000 if seed % 50 == 49 else rng.randrange(4000)
    return rng.randbytes(size) if seed % 2 else b"%d hello\r\n" % seed * (size // 9)


def parse(line):
    """Return (seed, ref) of an acknowledgement."""
    _, seed, segment, offset, length, size, digest, store, codec = line.decode().split()
    ref = BlobRef(
        bytes.fromhex(digest),
        bytes.fromhex(store),
        *(int(segment), int(offset), int(length), int(size), int(codec)),
    )
    return int(seed), ref


async def main(directory, producers, count, options):
    configure()
    store = await FileBlobStore.open(directory, options)
    start = random.randrange(1 << 40)
    seeds = iter(range(start, start + count)) if count else itertools.count(start)

    async def produce():
        for seed in seeds:
            ref = await store.put(content(seed))
            fields = (ref.segment, ref.offset, ref.length, ref.size)
            line = f"ack {seed} {' '.join(map(str, fields))} "
            line += f"{ref.hash.hex()} {ref.store.hex()} {ref.codec}\n"
            os.write(1, line.encode())

    await asyncio.gather(*(produce() for _ in range(producers)))
    await store.close()


if __name__ == "__main__":
    how = SHARED if sys.argv[4:] == ["shared"] else OPTIONS
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), how))
