"""``memory:``: a bounded cache inside one process."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

OVERHEAD = 200  # octets of an entry beside its value
OCTETS = 16 << 20


def open_cache(_url: str) -> MemoryCache:
    """Open ``memory:``."""
    return MemoryCache()


class MemoryCache:
    """``Cache`` that forgets what was used least recently."""

    def __init__(self, octets: int = OCTETS) -> None:
        self._limit = octets
        self._used = 0
        self._kept: collections.OrderedDict[Hashable, bytes] = collections.OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        """Return what was put under ``key``, if it is still there."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, value: bytes) -> None:
        """Keep a value, at the expense of others."""
        old = self._kept.pop(key, None)
        if old is not None:
            self._used -= len(old) + OVERHEAD
        self._kept[key] = value
        self._used += len(value) + OVERHEAD
        while self._used > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._used -= len(dropped) + OVERHEAD
