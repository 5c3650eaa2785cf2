"""IMAP on Twisted: TLS both ways, limits, back-pressure, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
from twisted import internet

from mailserverd.cli.selfsigned import self_signed
from mailserverd.net.imap import ImapServer
from mailserverd.net.listeners import listen_twisted, sockets
from mailserverd.net.tls import Certificates, Pair
from protocols.imap.services import ImapSettings
from tests.lib.imap import USER, Client, imap_services
from tests.lib.mailhost import PASSWORD, mail_host
from tests.lib.reactor import run_with_reactor
from tests.lib.waiting import until

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Coroutine, Iterator


class Site:
    """A server on three ports: implicit TLS, STARTTLS, and neither."""

    def __init__(self, host: Any, server: ImapServer) -> None:
        self.host = host
        self.server = server
        self.ports: dict[str, int] = {}
        self.clients: list[Client] = []

    async def client(self, how: str = "plain", *, login: bool = True) -> Client:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.ports[how],
            ssl=context() if how == "implicit" else None,
            limit=1 << 26,
        )
        client = Client(reader, writer)
        self.clients.append(client)
        client.greeting = await client.response()
        if login:
            await client.ok(f'LOGIN {USER} "{PASSWORD}"')
        return client


def context() -> ssl.SSLContext:
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def imap(**settings: Any) -> Callable[..., Callable[..., None]]:
    """Make a test of a coroutine function that takes a ``Site``."""

    def decorate(test: Callable[[Site], Coroutine[Any, Any, None]]) -> Any:
        def run(tmp_path: pathlib.Path) -> None:
            run_with_reactor(functools.partial(serve, test, tmp_path, settings))

        run.__name__ = test.__name__
        return run

    return decorate


async def serve(
    test: Callable[[Site], Coroutine[Any, Any, None]],
    path: pathlib.Path,
    settings: dict[str, Any],
    reactor: Any,
) -> None:
    certificate, key = self_signed("mail.example.org")
    (path / "cert.pem").write_bytes(certificate)
    (path / "key.pem").write_bytes(key)
    pair = Pair(str(path / "cert.pem"), str(path / "key.pem"))
    certificates = Certificates([pair])
    chosen = ImapSettings(**({"plaintext_auth": True} | settings))
    with global_reactor(reactor):
        await with_site(test, path, chosen, certificates, reactor)


@contextlib.contextmanager
def global_reactor(reactor: Any) -> Iterator[None]:
    """Twisted's TLS schedules its writes on the reactor that the process installed."""
    before = sys.modules.get("twisted.internet.reactor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "twisted.internet.reactor", reactor)
        patch.setattr(internet, "reactor", reactor, raising=False)
        yield
    assert sys.modules.get("twisted.internet.reactor") is before


async def with_site(
    test: Callable[[Site], Coroutine[Any, Any, None]],
    path: pathlib.Path,
    chosen: ImapSettings,
    certificates: Certificates,
    reactor: Any,
) -> None:
    async with mail_host(path) as host, asyncio.timeout(30):
        server = ImapServer(imap_services(host, chosen))
        site = Site(host, server)
        stops = []
        for how in ("implicit", "starttls", "plain"):
            (sock,) = sockets("127.0.0.1:0")
            site.ports[how] = sock.getsockname()[1]
            factory = server.factory(certificates if how == "starttls" else None)
            wrapped = certificates if how == "implicit" else None
            stops.append(listen_twisted(reactor, sock, factory, wrapped))
        try:
            await test(site)
        finally:
            for stop in stops:
                await stop().asFuture(asyncio.get_running_loop())
            for client in site.clients:
                await client.close()
            await server.shutdown(1)
            await until(lambda: not server.connections)


@imap(plaintext_auth=False)
async def test_implicit_tls(site: Site) -> None:
    client = await site.client("implicit")
    assert b"STARTTLS" not in client.greeting
    assert b"AUTH=PLAIN" in client.greeting
    await client.ok("SELECT INBOX")
    await client.ok("LOGOUT")
    assert await client.response() == b""


@imap(plaintext_auth=False)
async def test_starttls(site: Site) -> None:
    plain = await site.client("plain", login=False)
    assert b"STARTTLS" not in plain.greeting
    assert (await plain.no("STARTTLS")).startswith(b"BAD")
    client = await site.client("starttls", login=False)
    assert b"STARTTLS LOGINDISABLED" in client.greeting
    assert b"[PRIVACYREQUIRED]" in await client.no(f'LOGIN {USER} "{PASSWORD}"')
    await client.ok("STARTTLS")
    await client.writer.start_tls(context())
    assert b"STARTTLS" not in (await client.ok("CAPABILITY"))[0]
    await client.ok(f'LOGIN {USER} "{PASSWORD}"')
    await large_message(site, client)


@imap()
async def test_commands_behind_starttls_do_not_survive_it(site: Site) -> None:
    client = await site.client("starttls", login=False)
    client.send(b"a STARTTLS\r\nb NOOP\r\n")
    assert (await client.finish("a"))[0].startswith(b"BAD")
    assert (await client.finish("b"))[0].startswith(b"OK")


async def large_message(site: Site, client: Client) -> None:
    """Fetch what fits no buffer, reading late."""
    message = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * 1_000_000
    assert (await client.append("INBOX", message)).startswith(b"OK")
    await client.ok("SELECT INBOX")
    tag = client.begin("FETCH 1 BODY.PEEK[]")
    (session,) = (c.session for c in site.server.connections if c.session.account)
    await until(lambda: session.channel.congested)
    (response,) = (await client.finish(tag))[1]
    assert response.partition(b"\r\n")[2] == message + b")"


@pytest.mark.parametrize("how", ["plain", "implicit"])
def test_back_pressure(tmp_path: pathlib.Path, how: str) -> None:
    @imap()
    async def test(site: Site) -> None:
        await large_message(site, await site.client(how))

    test(tmp_path)


@imap()
async def test_input_is_held_back_while_a_command_runs(site: Site) -> None:
    client = await site.client()
    (connection,) = site.server.connections
    gate = asyncio.Event()
    original = site.host.mailboxes.subscriptions

    async def slow(access: Any) -> Any:
        await gate.wait()
        return await original(access)

    site.host.mailboxes.subscriptions = slow
    tag = client.begin('LSUB "" "*"')
    long = b"x" * 1000
    client.send(b"".join(b'p%d ID ("a" "%b")\r\n' % (n, long) for n in range(3000)))
    reader = connection.session.channel.reader
    await until(lambda: reader.buffered > 128 * 1024)
    for _ in range(20):
        await asyncio.sleep(0)
    assert reader.buffered < 512 * 1024
    gate.set()
    await client.finish(tag)
    await client.finish("p2999")


@imap(connections=3)
async def test_connections_are_limited(site: Site) -> None:
    for _ in range(3):
        await site.client()
    refused = await site.client(login=False)
    assert refused.greeting == b"* BYE [UNAVAILABLE] Too many connections"
    assert await refused.response() == b""
    await site.clients[0].ok("LOGOUT")
    await until(lambda: len(site.server.connections) == 2)
    await site.client()


@imap(connections_per_address=1)
async def test_connections_per_address_are_limited(site: Site) -> None:
    await site.client()
    refused = await site.client(login=False)
    assert refused.greeting.startswith(b"* BYE")
    assert len(site.server.connections) == 1


@imap()
async def test_shutdown(site: Site) -> None:
    idle, busy = await site.client(), await site.client("implicit")
    await busy.ok("SELECT INBOX")
    idle.begin("IDLE")
    assert await idle.response() == b"+ idling"
    await site.server.shutdown(5)
    for client in (idle, busy):
        told = await client.response()
        assert told == b"* BYE [UNAVAILABLE] server is shutting down"
        with contextlib.suppress(ssl.SSLError):
            assert await client.response() == b""
    assert not site.server.core.sessions


@imap()
async def test_idle_is_told_within_milliseconds(site: Site) -> None:
    idle = await site.client("implicit")
    await idle.ok("SELECT INBOX")
    idle.begin("IDLE")
    assert await idle.response() == b"+ idling"
    loop = asyncio.get_running_loop()
    times = []
    for number in range(1, 11):
        await site.host.send(b"Subject: x\r\n\r\n", USER)
        start = loop.time()
        assert await idle.response() == b"* %d EXISTS" % number
        times.append(loop.time() - start)
    assert sorted(times)[5] < 0.05
