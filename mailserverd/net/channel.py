"""Messages, with descriptors, between the supervisor and its processes.

Both ends are one program of one moment (a process is forked, never executed), so a
message is a pickled object.  Each is one packet; the kernel keeps them in order.
"""

from __future__ import annotations

import pickle
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST = 128 * 1024  # octets of a message: well below a socket's buffer
DESCRIPTORS = 200  # of one message; the kernel's limit is 253


class Channel:
    """One end; never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two connected ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """Return the descriptor, to wait for messages."""
        return self._socket.fileno()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> bool:
        """Send; False when the other end is gone or has not read for long, or the
        message is larger than ``LARGEST``."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if len(data) > LARGEST:
            return False
        try:
            socket.send_fds(self._socket, [data], list(descriptors))
        except OSError:
            return False
        return True

    def receive(self) -> tuple[Any, list[int]] | None:
        """Return the next message and its descriptors; None at the end.

        BlockingIOError while there is none.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._socket, LARGEST, DESCRIPTORS
            )
        except ConnectionError:
            return None
        if not data:
            return None
        return pickle.loads(data), descriptors

    def close(self) -> None:
        """Close this end; harmless when done twice."""
        self._socket.close()
