"""Any bytes to any port: sends while it reads, half-closes, returns what came back."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING

from tests.lib.clients import unverified

if TYPE_CHECKING:
    import random

TIME_LIMIT = 15.0
CHUNK = 1 << 16


def exchange(
    port: int, data: bytes, *, tls: bool = False, end: bool = True, piece: int = CHUNK
) -> bytes:
    """Send octets, end our side, and return all that came until the server closed.

    ``end=False`` keeps our side open: the server must close by itself.  AssertionError
    when it does not within ``TIME_LIMIT``.
    """
    with socket.create_connection(("127.0.0.1", port), TIME_LIMIT) as sock:
        if not tls:
            return pump(sock, data, end=end, piece=piece)
        secure = Tls(sock)
        return secure.decrypt(pump(sock, secure.encrypt(data), end=end, piece=piece))


def pump(sock: socket.socket, data: bytes, *, end: bool, piece: int) -> bytes:
    """Write and read at once until the other side closes."""
    sock.setblocking(False)
    waiting, received = memoryview(data), bytearray()
    until = time.monotonic() + TIME_LIMIT
    ended = False
    while True:
        assert time.monotonic() < until, f"still open: {bytes(received[-300:])!r}"
        if not waiting and end and not ended:
            ended = _shutdown(sock)
        readable, writable, _ = select.select([sock], [sock] if waiting else [], [], 1)
        try:
            if readable:
                got = sock.recv(CHUNK)
                if not got:
                    return bytes(received)
                received += got
            if writable:
                waiting = waiting[sock.send(waiting[:piece]) :]
        except (ConnectionError, TimeoutError):
            return bytes(received)


def _shutdown(sock: socket.socket) -> bool:
    with contextlib.suppress(OSError):  # the other side was first: reading will tell
        sock.shutdown(socket.SHUT_WR)
    return True


class Tls:
    """A handshake on a plain socket, then octets through buffers of our own."""

    def __init__(self, sock: socket.socket) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = unverified().wrap_bio(self._in, self._out)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(self._out.read())
                self._in.write(sock.recv(CHUNK))
            else:
                sock.sendall(self._out.read())
                return

    def encrypt(self, data: bytes) -> bytes:
        if data:
            self._tls.write(data)
        return self._out.read()

    def decrypt(self, data: bytes) -> bytes:
        self._in.write(data)
        found = b""
        while True:
            try:
                more = self._tls.read(CHUNK)
            except ssl.SSLError:
                return found
            if not more:
                return found
            found += more


def mutated(rng: random.Random, dialog: bytes) -> bytes:
    """Return the dialog with a few octets changed, cut out, doubled or moved."""
    data = bytearray(dialog)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 1, 2, 5, 40))
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
            case 3:
                data[at:at] = rng.choice(
                    (
                        b"\r\n",
                        b"\0",
                        b"\n",
                        b"{1}",
                        b"(",
                        b'"',
                        b"%s",
                        b"\xff\xfe",
                        b"../",
                    )
                )
            case _:
                other = rng.randrange(len(data) + 1)
                data[at:at] = data[other : other + size]
    return bytes(data)
