"""Unix sockets of the daemon: where they lie and who is at the other end."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError

if TYPE_CHECKING:
    import asyncio
    import pathlib
    from collections.abc import Iterator

LONGEST = 107  # octets of a socket's path (unix(7))


@contextlib.contextmanager
def address(path: pathlib.Path) -> Iterator[str]:
    """Yield a socket's path; one that is too long by way of its open directory."""
    if len(os.fsencode(path)) <= LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def private_directory(path: pathlib.Path) -> None:
    """Make a directory for sockets, or take one over: 0700 and this user's own.

    FORBIDDEN when it belongs to another user.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
            raise MailError(Kind.FORBIDDEN, f"{path} belongs to another user")
        path.chmod(0o700)
    except OSError as error:
        raise MailError(Kind.FORBIDDEN, f"{path}: {error.strerror}") from error


def peer_uid(transport: asyncio.BaseTransport) -> int:
    """Return the user id of the process at the other end."""
    size = struct.calcsize("3i")
    sock = transport.get_extra_info("socket")
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    uid: int = struct.unpack("3i", raw)[1]
    return uid
