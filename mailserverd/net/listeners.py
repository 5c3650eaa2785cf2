"""Listening sockets: bound by us or inherited from systemd, for both frameworks."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.protocols.tls import TLSMemoryBIOFactory

from mailserverd.core.log import get_logger
from mailserverd.net import systemd

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

    from mailserverd.net.tls import Certificates

log = get_logger("net")
BACKLOG = 1024


class ListenError(Exception):
    """An address cannot be listened on; the text says which and why."""


@dataclasses.dataclass(slots=True)
class Listener:
    """One open listener; ``stop`` refuses new connections, open ones live on."""

    protocol: str
    address: str
    stop: Callable[[], Any]


def sockets(address: str) -> list[socket.socket]:
    """Bind ``host:port`` or take what systemd passed as ``systemd:NAME``.

    ListenError when it cannot be.
    """
    kind, _, name = address.partition(":")
    if kind == "systemd":
        return _inherited_sockets(name)
    host, _, port = address.rpartition(":")
    try:
        return [_bound(host.strip("[]"), int(port))]
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error


class Shared:
    """Listening sockets by address, of processes that all accept from them.

    The supervisor binds them; whoever it forks has them, too, and new ones are sent.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[socket.socket]] = {}

    def __contains__(self, address: object) -> bool:
        return address in self._held

    def bind(self, addresses: Iterable[str]) -> list[str]:
        """Bind what is not yet bound, all or (ListenError) nothing; return what is new.

        An address may stand there more than once.
        """
        fresh: list[str] = []
        try:
            for address in addresses:
                if address not in self._held:
                    self._held[address] = sockets(address)
                    fresh.append(address)
        except ListenError:
            self.close(fresh)
            raise
        return fresh

    def add(self, address: str, sock: socket.socket) -> None:
        """Hold a socket that was sent."""
        sock.setblocking(False)
        self._held.setdefault(address, []).append(sock)

    def listed(self, addresses: Iterable[str]) -> list[tuple[str, int]]:
        """Return (address, descriptor) of each socket, to send them."""
        return [(a, sock.fileno()) for a in addresses for sock in self._held[a]]

    def take(self, address: str) -> list[socket.socket]:
        """Return duplicates to serve and close; ListenError for an unknown address."""
        if address not in self._held:
            raise ListenError(f"no socket for {address}")
        return [sock.dup() for sock in self._held[address]]

    def close(self, addresses: Iterable[str]) -> None:
        """Hold these no more."""
        for address in addresses:
            for sock in self._held.pop(address, ()):
                sock.close()

    def keep(self, addresses: Iterable[str]) -> None:
        """Hold no others than these."""
        self.close(self._held.keys() - set(addresses))


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _inherited_sockets(name: str) -> list[socket.socket]:
    descriptors = systemd.inherited().get(name, [])
    if not descriptors:
        raise ListenError(
            f"systemd passed no socket named {name}: "
            f"is there a socket unit with FileDescriptorName={name}?"
        )
    found = [socket.socket(fileno=os.dup(fd)) for fd in descriptors]
    for sock in found:
        sock.setblocking(False)
    return found


def listen_twisted(
    reactor: Any, sock: socket.socket, factory: Any, certificates: Certificates | None
) -> Callable[[], Any]:
    """Serve a Twisted factory; with certificates, TLS from the first byte."""
    if certificates is not None:
        factory = TLSMemoryBIOFactory(
            certificates, isClient=False, wrappedFactory=factory
        )
    port: Any = reactor.adoptStreamPort(sock.fileno(), sock.family, factory)
    sock.close()  # the reactor has its own duplicate
    stop: Callable[[], Any] = port.stopListening
    return stop


async def listen_asyncio(
    sock: socket.socket,
    factory: Callable[[], asyncio.BaseProtocol],
    context: ssl.SSLContext | None,
) -> Callable[[], Any]:
    """Serve an asyncio protocol factory; with a context, TLS from the first byte."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        factory,
        sock=sock,
        ssl=context,
        ssl_handshake_timeout=30 if context else None,
    )
    return server.close
