"""One process owns a database file: ``flock`` on ``PATH.lock`` (DESIGN decision 8).

Two writing processes would starve one another (BEGIN IMMEDIATE is no scheduler),
and each would trust caches that the other one makes false.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from mailserverd.core.errors import Kind, MailError
from storage.metadata.meta import UnfitDatabase


class Lease:
    """Held from construction to ``release``; the kernel ends it with the process."""

    def __init__(self, path: str) -> None:
        self.path = f"{os.path.realpath(path)}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise MailError(
                Kind.UNAVAILABLE, f"cannot open {self.path}: {error.strerror}"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise UnfitDatabase(
                Kind.UNAVAILABLE,
                f"{path} is in use by another process ({owner or 'unknown'})",
            ) from error
        with contextlib.suppress(OSError):  # a full disk: others see no owner's id
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it; harmless when done twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
