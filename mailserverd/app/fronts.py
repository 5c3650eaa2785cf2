"""The listening side: one protocol factory per kind, open listeners, reload, drain."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from mailserverd.core.log import get_logger
from mailserverd.net import listeners
from mailserverd.net.http import HttpFactory
from mailserverd.net.http_channel import FrontSettings
from mailserverd.net.http_metrics import MetricsSite
from mailserverd.net.imap import ImapServer
from mailserverd.net.listeners import ListenError
from mailserverd.net.tls import CertificateError, Certificates, Pair
from mailserverd.settings import PROTOCOLS
from protocols.imap.services import ImapServices, ImapSettings
from protocols.jmap.services import Limits as JmapLimits
from protocols.jmap.services import Services as JmapServices
from protocols.jmap.services import Settings as JmapSettings
from protocols.jmap.site import JmapSite
from protocols.smtp.server import Services as SmtpServices
from protocols.smtp.server import SmtpServer
from protocols.smtp.settings import Kind, SmtpSettings

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable

    from mailserverd.app.graph import Graph
    from mailserverd.core.tally import Tally
    from mailserverd.settings import Listener, Settings
    from protocols.web import Application

    Check = Callable[[], Awaitable[str]]

log = get_logger("net")
CERTIFICATE_POLL = 30.0  # seconds between looks at the certificate files
SMTP_KINDS = {
    "smtp": Kind.MX,
    "submission": Kind.SUBMISSION,
    "lmtp": Kind.LMTP,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """What this process serves, where several share the listeners.

    ``sockets`` opens an address, ``tally`` counts connections for all processes, and
    ``metrics`` answers on the metrics listener.
    """

    protocols: frozenset[str]
    sockets: Callable[[str], list[socket.socket]]
    tally: Tally | None = None
    metrics: Application | None = None


ALONE = Share(frozenset(PROTOCOLS), listeners.sockets)


class Fronts:
    """Everything that listens; ``apply`` opens, closes and adjusts it."""

    def __init__(
        self, graph: Graph, settings: Settings, reactor: Any, share: Share = ALONE
    ) -> None:
        self._graph = graph
        self._reactor = reactor
        self._share = share
        self._open: dict[Listener, listeners.Listener] = {}
        self.settings = settings
        self.certificates = certificates(settings)
        self._smtp: dict[tuple[str, bool], SmtpServer] = {}
        self._imap = ImapServer(imap_services(graph, settings), share.tally)
        self._http = HttpFactory(
            JmapSite(jmap_services(graph, settings)),
            front_settings(settings),
            share.tally,
        )
        site = share.metrics or MetricsSite(graph.checks())
        self._metrics = HttpFactory(site, FrontSettings())

    def _wanted(self, settings: Settings) -> list[Listener]:
        """Return the listeners that are this process's to serve."""
        return [o for o in settings.listener if o.protocol in self._share.protocols]

    def _stdlib_tls(self) -> ssl.SSLContext:
        assert self.certificates is not None
        return self.certificates.stdlib

    def _smtp_server(self, one: Listener) -> SmtpServer:
        """Return the factory of a kind, with STARTTLS or without."""
        offered = one.tls == "starttls" and self.certificates is not None
        key = (one.protocol, offered)
        if key not in self._smtp:
            graph = self._graph
            services = SmtpServices(
                graph.receive, graph.submission, graph.authenticator
            )
            self._smtp[key] = SmtpServer(
                SMTP_KINDS[one.protocol],
                smtp_settings(self.settings),
                services,
                tls=self._stdlib_tls if offered else None,
                tally=self._share.tally,
            )
        return self._smtp[key]

    async def open(self, settings: Settings) -> None:
        """Open what is configured and not open; ListenError names what failed."""
        for one in self._wanted(settings):
            if one not in self._open:
                self._open[one] = await self._listen(one)

    async def apply(self, settings: Settings) -> None:
        """Take over new settings: listeners, limits, certificates; connections stay.

        Raises CertificateError or ListenError with everything as it was; but for an
        address that had to be closed first, and that somebody else took meanwhile.
        """
        wanted = self._wanted(settings)
        gone = [one for one in self._open if one not in wanted]
        await self._open_beside(settings, {one.address for one in gone})
        for one in gone:
            await _stop(self._open.pop(one))
        self.settings = settings
        await self.open(settings)
        for server in self._smtp.values():
            server.settings = smtp_settings(settings)
        self._imap.settings = imap_settings(settings)
        self._http.settings = front_settings(settings)
        self._http.app = JmapSite(jmap_services(self._graph, settings))
        self._graph.apply(settings)

    async def _open_beside(self, settings: Settings, taken: set[str]) -> None:
        """Do all that may fail while everything is as it was; undo it when it does.

        ``taken`` are addresses that must be closed before they can be opened anew.
        """
        if self.certificates is None:
            self.certificates = certificates(settings)
        opened: list[Listener] = []
        try:
            for one in self._wanted(settings):
                if one not in self._open and one.address not in taken:
                    self._open[one] = await self._listen(one)
                    opened.append(one)
            if self.certificates is not None and settings.certificate:
                self.certificates.replace(pairs(settings))
        except (ListenError, CertificateError):
            for one in opened:
                await _stop(self._open.pop(one))
            raise

    async def _listen(self, one: Listener) -> listeners.Listener:
        stops: list[Callable[[], Any]] = []
        implicit = self.certificates if one.tls == "implicit" else None
        for sock in self._share.sockets(one.address):
            if one.protocol in SMTP_KINDS:
                server = self._smtp_server(one)
                context = implicit.stdlib if implicit else None
                stops.append(await listeners.listen_asyncio(sock, server, context))
            else:
                factory = self._twisted_factory(one)
                stops.append(
                    listeners.listen_twisted(self._reactor, sock, factory, implicit)
                )
        log.info("listening", protocol=one.protocol, address=one.address, tls=one.tls)
        return listeners.Listener(
            one.protocol, one.address, lambda: [stop() for stop in stops]
        )

    def _twisted_factory(self, one: Listener) -> Any:
        if one.protocol == "imap":
            offered = self.certificates if one.tls == "starttls" else None
            return self._imap.factory(offered)
        return self._http if one.protocol == "http" else self._metrics

    async def watch_certificates(self) -> None:
        """Take over renewed files until cancelled."""
        while True:
            await asyncio.sleep(CERTIFICATE_POLL)
            if self.certificates is not None:  # a reload may bring them
                self.certificates.reload_if_changed()

    async def drain(self, seconds: float) -> None:
        """Stop listening, let transactions end, close what is left."""
        for one in self._open.values():
            await _stop(one)
        await asyncio.gather(
            *(server.drain() for server in self._smtp.values()),
            self._imap.shutdown(seconds),
            self._http.shutdown(seconds),
            self._metrics.shutdown(0),
        )


async def _stop(one: listeners.Listener) -> None:
    one.stop()
    await asyncio.sleep(0)  # the reactor closes the socket on its next turn
    log.info("stopped-listening", protocol=one.protocol, address=one.address)


def pairs(settings: Settings) -> list[Pair]:
    """Return the configured certificates."""
    return [Pair(c.certificate, c.key) for c in settings.certificate]


def certificates(settings: Settings) -> Certificates | None:
    """Read the configured certificates; CertificateError when one cannot be used."""
    return Certificates(pairs(settings)) if settings.certificate else None


def smtp_settings(settings: Settings) -> SmtpSettings:
    """Return SMTP's part."""
    return SmtpSettings(
        settings.server.hostname,
        max_message_size=settings.inbound.max_message_size,
        max_recipients=settings.inbound.max_recipients,
        max_connections=settings.limits.connections,
        max_connections_per_address=settings.limits.connections_per_address,
        max_commands_per_minute=settings.limits.command_rate,
        drain_timeout=settings.server.drain,
    )


def imap_settings(settings: Settings) -> ImapSettings:
    """Return IMAP's part."""
    return ImapSettings(
        plaintext_auth=settings.limits.plaintext_auth,
        max_message_size=settings.inbound.max_message_size,
        connections=settings.limits.connections,
        connections_per_address=settings.limits.connections_per_address,
    )


def imap_services(graph: Graph, settings: Settings) -> ImapServices:
    """Return what IMAP works with."""
    return ImapServices(
        mailboxes=graph.mailboxes,
        messages=graph.messages,
        search=graph.search,
        receive=graph.receive,
        authenticator=graph.authenticator,
        changes=graph.changes,
        clock=graph.clock,
        settings=imap_settings(settings),
    )


def jmap_services(graph: Graph, settings: Settings) -> JmapServices:
    """Return what JMAP works with."""
    return JmapServices(
        mailboxes=graph.mailboxes,
        messages=graph.messages,
        search=graph.search,
        identities=graph.identities,
        submissions=graph.submissions,
        receive=graph.receive,
        submission=graph.submission,
        authenticator=graph.authenticator,
        directory=graph.stores.directory,
        changes=graph.changes,
        offload=graph.offload,
        clock=graph.clock,
        cache=graph.cache,
        settings=jmap_settings(settings),
    )


def jmap_settings(settings: Settings) -> JmapSettings:
    """Return JMAP's part."""
    largest = settings.inbound.max_message_size
    return JmapSettings(
        hostname=settings.server.hostname,
        public_url=settings.server.public_url,
        plaintext_auth=settings.limits.plaintext_auth,
        allowed_origins=settings.limits.allowed_origins,
        limits=JmapLimits(
            max_size_submission=largest,
            max_recipients=settings.inbound.max_recipients,
        ),
    )


def front_settings(settings: Settings) -> FrontSettings:
    """Return HTTP's part."""
    return FrontSettings(
        connections=settings.limits.connections,
        connections_per_address=settings.limits.connections_per_address,
        spool_dir=f"{settings.server.data_dir}/spool",
    )
