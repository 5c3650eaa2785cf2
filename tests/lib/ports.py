"""Ports of loopback that are free, and stay so until whoever asked listens on them.

All lie below 32768, where the ports of outgoing connections begin: else one of those
may take a port between the asking and the listening.  Test runs beside this one
respect what is reserved here, and we what is reserved there.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import pathlib
import random
import socket
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

RESERVED = pathlib.Path(tempfile.gettempdir()) / f"mailserverd-test-ports-{os.getuid()}"
TRIES = 200
_locks: dict[int, list[int]] = {}  # descriptors by base
# As many single ports are kept for those who have yet to listen on them.
_single: collections.deque[int] = collections.deque()
SINGLE = 64


def free_port() -> int:
    """Return a port that is free for UDP and TCP; it is reserved for a good while."""
    port = free_base(range(10_000, 32_768), (0,))
    _single.append(port)
    if len(_single) > SINGLE:
        release(_single.popleft())
    return port


def free_base(bases: range, offsets: Sequence[int]) -> int:
    """Return a base whose ports at these offsets are free, and reserve them.

    They are ours until ``release``, or our end.
    """
    for _ in range(TRIES):
        base = random.choice(bases)
        if base not in _locks and _reserve(base, offsets):
            if all(_free(base + offset) for offset in offsets):
                return base
            release(base)
    raise RuntimeError("no free ports")


def _reserve(base: int, offsets: Sequence[int]) -> bool:
    RESERVED.mkdir(exist_ok=True)
    _locks[base] = []
    for offset in offsets:
        path = RESERVED / str(base + offset)
        _locks[base].append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            fcntl.flock(_locks[base][-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            release(base)
            return False
    return True


def release(base: int) -> None:
    """Let others have the ports."""
    for descriptor in _locks.pop(base, ()):
        os.close(descriptor)


def _free(port: int) -> bool:
    with (
        contextlib.suppress(OSError),
        socket.socket() as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", port))
        udp.bind(("127.0.0.1", port))
        return True
    return False
