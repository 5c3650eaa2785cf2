"""A small disk of its own, to be filled up: a tmpfs, for root alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

BLOCK = 4096


class Volume:
    """``fill`` leaves some octets free, ``free`` gives the rest back."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, leave: int = 0) -> None:
        with self._filler.open("ab", buffering=0) as file:
            status = os.statvfs(self.path)
            size = max(0, status.f_bavail * status.f_frsize - leave)
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), file.tell(), size)

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def volume(path: pathlib.Path, size: str) -> Iterator[Volume]:
    """Mount a tmpfs of ``size`` ("48m"); skips the test where that is not allowed."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a disk that can be filled: {done.stderr.decode().strip()}")
    try:
        yield Volume(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)
