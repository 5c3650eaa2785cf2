"""Giving memory back to the system once much of it is free."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return free pages of the heap to the system; takes milliseconds.

    The C library keeps what lies between things that are still used.  One that has
    no ``malloc_trim`` has no such heap.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
