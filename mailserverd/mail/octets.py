"""One way to look at a message, whether it is bytes, a memoryview or an mmap.

Up to a few MiB are copied into bytes, whose searches are fastest; larger ones
are read through windows, so that 50 MB cost no 50 MB of memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import mmap
    import re

COPIED_UP_TO = 4 << 20
_WINDOW = 1 << 20


class Octets(Protocol):
    """What the scanner asks of a message: the searches of bytes, and slices."""

    def find(self, needle: bytes, start: int, end: int, /) -> int:
        """Return where ``needle`` first lies inside [start, end), or -1."""

    def count(self, needle: bytes, start: int, end: int, /) -> int:
        """Return how often a single octet occurs in [start, end)."""

    def __getitem__(self, place: slice, /) -> bytes: ...

    def __len__(self) -> int: ...


class Windows:
    """The same over a buffer that is not copied as a whole."""

    def __init__(self, view: memoryview) -> None:
        self._view = view.cast("B")

    def find(self, needle: bytes, start: int, end: int, /) -> int:
        """Return where ``needle`` first lies inside [start, end), or -1."""
        start, end = max(start, 0), min(end, len(self._view))
        while start < end:
            stop = min(start + _WINDOW, end)
            found = bytes(self._view[start:stop]).find(needle)
            if found >= 0:
                return start + found
            if stop == end:
                return -1
            start = stop - len(needle) + 1
        return -1

    def count(self, needle: bytes, start: int, end: int, /) -> int:
        """Return how often a single octet occurs in [start, end)."""
        total = 0
        for place in range(start, end, _WINDOW):
            window = self._view[place : min(place + _WINDOW, end)]
            total += bytes(window).count(needle)
        return total

    def __getitem__(self, place: slice, /) -> bytes:
        return bytes(self._view[place])

    def __len__(self) -> int:
        return len(self._view)

    def search(
        self, pattern: re.Pattern[bytes], start: int, end: int
    ) -> re.Match[bytes] | None:
        """Return the pattern's first match inside [start, end)."""
        return pattern.search(self._view, start, end)


def open_octets(raw: bytes | mmap.mmap | memoryview) -> Octets:
    """Return the way to look at ``raw`` that suits its kind and size."""
    if isinstance(raw, bytes):
        return raw
    view = memoryview(raw)
    if len(view) <= COPIED_UP_TO:
        return bytes(view)
    return Windows(view)


def search(
    pattern: re.Pattern[bytes], octets: Octets, start: int, end: int
) -> re.Match[bytes] | None:
    """Return the first match of a pattern inside [start, end)."""
    if isinstance(octets, bytes):
        return pattern.search(octets, start, end)
    assert isinstance(octets, Windows)
    return octets.search(pattern, start, end)
