"""Listening SMTP servers of every kind over a ``mail_host``, on free loopback ports."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mailserverd.cli.selfsigned import self_signed
from mailserverd.services.submission import Submission
from protocols.smtp.server import Services, SmtpServer
from protocols.smtp.settings import Kind, SmtpSettings
from tests.lib.mailhost import HOSTNAME, MailHost, mail_host

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Mapping

Address = tuple[str, int]


@dataclasses.dataclass(slots=True)
class Site:
    """Addresses by kind: mx submission submissions lmtp."""

    host: MailHost
    submission: Submission
    servers: dict[str, SmtpServer]
    addresses: dict[str, Address]


def server_context(directory: pathlib.Path) -> ssl.SSLContext:
    """Return a context with a self-signed certificate."""
    certificate, key = self_signed(HOSTNAME)
    (directory / "cert.pem").write_bytes(certificate)
    (directory / "key.pem").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


@contextlib.asynccontextmanager
async def smtp_site(
    directory: pathlib.Path,
    *addresses: str,
    host: Mapping[str, Any] = MappingProxyType({}),
    shards: int = 1,
    **options: Any,
) -> AsyncIterator[Site]:
    """Open everything; ``host`` is for ``mail_host``, ``options`` for SmtpSettings."""
    settings = SmtpSettings(HOSTNAME, **({"drain_timeout": 2.0} | options))
    context = server_context(directory)
    loop = asyncio.get_running_loop()
    async with mail_host(directory, *addresses, shards=shards, **host) as opened:
        submission = Submission(opened.receive)
        services = Services(opened.receive, submission, opened.authenticator)
        kinds = {
            "mx": (Kind.MX, None),
            "submission": (Kind.SUBMISSION, None),
            "submissions": (Kind.SUBMISSION, context),
            "lmtp": (Kind.LMTP, None),
        }
        servers: dict[str, SmtpServer] = {}
        listening: dict[str, asyncio.Server] = {}
        for name, (kind, implicit) in kinds.items():
            server = SmtpServer(kind, settings, services, tls=lambda: context)
            servers[name] = server
            listening[name] = await loop.create_server(
                server, "127.0.0.1", 0, ssl=implicit
            )
        ports = {n: s.sockets[0].getsockname()[:2] for n, s in listening.items()}
        try:
            yield Site(opened, submission, servers, ports)
        finally:
            for one in listening.values():
                one.close()
            for server in servers.values():
                await server.drain()
            await opened.receive.notices.close()
