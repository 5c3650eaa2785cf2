"""``file:///absolute``: what ``storage.engines`` calls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from storage.blobs.file.store import FileBlobStore, Options

if TYPE_CHECKING:
    from mailserverd.core.ports import Clock


def path_of(url: str) -> str:
    """Return the directory of the segments."""
    return url.partition("://")[2]


async def open_blobs(
    url: str, clock: Clock, *, exclusive: bool, scratch: str = ""
) -> FileBlobStore:
    """Open the store, and recover what a crash left; it needs no ``scratch``."""
    del scratch
    options = Options(exclusive=exclusive)
    return await FileBlobStore.open(path_of(url), options, clock=clock)


async def size_of(url: str) -> int:
    """Return the octets of all segments; 0 when there is no such directory."""
    try:
        entries = list(os.scandir(path_of(url)))
    except FileNotFoundError:
        return 0
    total = 0
    for entry in entries:
        try:
            total += entry.stat().st_size
        except FileNotFoundError:  # sealed or removed since it was listed
            continue
    return total
