"""Outgoing connections of the relay: asyncio streams, TLS taken where offered."""

from __future__ import annotations

import asyncio
import ssl

READ = 64 * 1024
HANDSHAKE = 30.0  # seconds


class TcpStream:
    """Implements ``mailserverd.core.ports.Stream``."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        peer = writer.get_extra_info("peername")
        self._peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "?"

    async def read(self) -> bytes:
        """Return what arrived next; ``b""`` at the end of the stream."""
        return await self._reader.read(READ)

    async def write(self, data: bytes) -> None:
        """Write with back-pressure; ConnectionError when the peer is gone."""
        if self._writer.is_closing():
            raise ConnectionResetError("connection closed")
        self._writer.write(data)
        await self._writer.drain()

    async def start_tls(self, server_name: str, *, verify: bool) -> str:
        """Start TLS as client; return ``"TLSv1.3 CIPHER verified|unverified"``."""
        context = client_context(verify=verify)
        async with asyncio.timeout(HANDSHAKE):
            await self._writer.start_tls(context, server_hostname=server_name)
        tls = self._writer.get_extra_info("ssl_object")
        cipher = tls.cipher()
        trust = "verified" if verify else "unverified"
        return f"{tls.version()} {cipher[0] if cipher else ''} {trust}"

    def close(self) -> None:
        """Close now; never raises.

        Over TLS without a farewell in TLS: QUIT was one, and a peer that does not
        answer it would hold the socket for long.
        """
        if self._writer.get_extra_info("ssl_object") is None:
            self._writer.close()
        else:
            self._writer.transport.abort()

    @property
    def peer(self) -> str:
        """The peer's address, for logs."""
        return self._peer


class TcpConnector:
    """Implements ``mailserverd.core.ports.Connector``."""

    async def connect(self, address: str, port: int, *, time_limit: float) -> TcpStream:
        """Connect to an IP address; OSError or TimeoutError when it fails."""
        async with asyncio.timeout(time_limit):
            reader, writer = await asyncio.open_connection(address, port)
        return TcpStream(reader, writer)


def client_context(*, verify: bool) -> ssl.SSLContext:
    """Return a context; without ``verify``, one that takes any certificate.

    Opportunistic TLS protects against those who only listen (RFC 7435): unverified
    is better than plain, and so are old versions as far as OpenSSL still has them.
    """
    context = _CONTEXTS.get(verify)
    if context is None:
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        _CONTEXTS[verify] = context
    return context


_CONTEXTS: dict[bool, ssl.SSLContext] = {}
