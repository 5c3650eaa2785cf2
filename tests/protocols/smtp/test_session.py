"""Limits, time, disconnection and shutdown of SMTP sessions."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from tests.lib.dialog import client_context
from tests.lib.mailhost import PASSWORD
from tests.lib.smtpsite import Site, smtp_site
from tests.lib.waiting import until

if TYPE_CHECKING:
    import pathlib

ALICE = "alice@example.org"
GROUP = b"MAIL FROM:<s@example.net>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n"
Steps = Callable[[Site, "Client"], Awaitable[None]]


class Client:
    """A connection that says what it is told."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader = reader
        self.writer = writer

    async def reply(self) -> str:
        """Read one reply; its last line."""
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), 10)).decode()
            if line[3:4] != "-":
                return line.rstrip("\r\n")

    async def say(self, data: bytes) -> str:
        """Send octets and read one reply."""
        self.writer.write(data)
        await self.writer.drain()
        return await self.reply()

    async def greet(self) -> None:
        """Greet and say EHLO."""
        assert (await self.reply()).startswith("220 ")
        assert (await self.say(b"EHLO c.example.net\r\n")).startswith("250 ")

    async def in_data(self) -> None:
        """Be where content is expected."""
        await self.greet()
        self.writer.write(GROUP)
        assert [(await self.reply())[:3] for _ in range(3)] == ["250", "250", "354"]

    async def closed(self) -> bool:
        """Wait for the server's close."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), 10) == b""
        return True


@contextlib.asynccontextmanager
async def connect(site: Site, kind: str = "mx") -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*site.addresses[kind])
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def run(tmp_path: pathlib.Path, steps: Steps, **settings: Any) -> None:
    """Run steps with a connected client."""

    async def main() -> None:
        async with smtp_site(tmp_path, **settings) as site, connect(site) as client:
            await steps(site, client)

    asyncio.run(main())


def test_a_group_is_answered_in_one_write(tmp_path: pathlib.Path) -> None:
    async def steps(_: Site, client: Client) -> None:
        await client.greet()
        client.writer.write(GROUP)
        answer = await client.reader.read(65536)
        assert answer.count(b"\r\n") == 3

    run(tmp_path, steps)


def test_a_peer_that_drops_in_the_middle_of_data_leaves_nothing(
    tmp_path: pathlib.Path,
) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.in_data()
        client.writer.write(b"Subject: half\r\n\r\n" + b"x" * 400_000)
        await client.writer.drain()
        client.writer.transport.abort()
        await until(lambda: site.servers["mx"].connections == 0)
        assert await site.host.mail(ALICE) == []

    run(tmp_path, steps)


def test_end_of_file_instead_of_the_dot_stores_nothing(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.in_data()
        client.writer.write(b"Subject: half\r\n\r\nx\r\n.")
        client.writer.write_eof()
        assert await client.closed()
        assert await site.host.mail(ALICE) == []

    run(tmp_path, steps)


def test_a_half_closed_client_still_gets_its_reply(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.in_data()
        client.writer.write(b"Subject: whole\r\n\r\nx\r\n.\r\n")
        client.writer.write_eof()
        assert (await client.reply()).startswith("250 2.0.0")
        assert len(await site.host.mail(ALICE)) == 1

    run(tmp_path, steps)


def test_a_silent_client_is_timed_out(tmp_path: pathlib.Path) -> None:
    async def steps(_: Site, client: Client) -> None:
        await client.greet()
        assert (await client.reply()).startswith("421 4.4.2")
        assert await client.closed()

    run(tmp_path, steps, command_timeout=0.1)


def test_a_command_that_comes_octet_by_octet_is_timed_out(
    tmp_path: pathlib.Path,
) -> None:
    async def steps(_: Site, client: Client) -> None:
        await client.greet()
        answer = asyncio.ensure_future(client.reply())
        async with asyncio.timeout(10):
            while not answer.done():
                client.writer.write(b"N")
                await asyncio.wait([answer], timeout=0.02)
        assert answer.result().startswith("421 4.4.2")
        assert await client.closed()

    run(tmp_path, steps, command_timeout=0.3)


def test_a_line_without_an_end_ends_the_session(tmp_path: pathlib.Path) -> None:
    async def steps(_: Site, client: Client) -> None:
        await client.greet()
        client.writer.write(b"x" * 2_000_000)
        assert (await client.reply()).startswith("421 4.7.0")
        assert await client.closed()

    run(tmp_path, steps)


def test_silence_in_the_data_is_timed_out(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.in_data()
        client.writer.write(b"Subject: slow\r\n")
        assert (await client.reply()).startswith("421 4.4.2")
        assert await client.closed()
        assert await site.host.mail(ALICE) == []

    run(tmp_path, steps, data_idle_timeout=0.1)


def test_a_slow_loris_meets_the_limit_of_the_whole_data(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.in_data()
        answer = asyncio.ensure_future(client.reply())
        while not answer.done():
            client.writer.write(b"x\r\n")
            await asyncio.wait([answer], timeout=0.02)
        assert answer.result().startswith("421 4.4.2")
        assert await site.host.mail(ALICE) == []

    run(tmp_path, steps, data_timeout=0.3)


def test_waiting_for_storage_is_not_the_clients_silence(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        release = asyncio.Event()
        check = site.host.receive.check_recipient

        async def slow_check(address: str, *, size: int = 0) -> None:
            await release.wait()
            await check(address, size=size)

        site.host.receive.check_recipient = slow_check  # type: ignore[method-assign] # slowed down
        await client.greet()
        await client.say(b"MAIL FROM:<s@example.net>\r\n")
        answer = asyncio.ensure_future(client.say(b"RCPT TO:<alice@example.org>\r\n"))
        await asyncio.wait([answer], timeout=0.5)  # longer than the limit
        assert not answer.done()
        release.set()
        assert (await answer).startswith("250 2.1.5")

    run(tmp_path, steps, command_timeout=0.3)


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
def test_too_many_connections(tmp_path: pathlib.Path, limit: str) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.greet()
        async with connect(site) as second:
            await second.greet()
            async with connect(site) as third:
                assert (await third.reply()).startswith("421 4.7.0 Too many connec")
                assert await third.closed()
        await until(lambda: site.servers["mx"].connections == 1)
        async with connect(site) as fourth:
            await fourth.greet()

    run(tmp_path, steps, **{limit: 2})


def test_too_many_commands(tmp_path: pathlib.Path) -> None:
    async def steps(_: Site, client: Client) -> None:
        await client.greet()
        client.writer.write(b"NOOP\r\n" * 200)
        replies = [await client.reply() for _ in range(99)]
        assert replies[:98] == ["250 2.0.0 OK"] * 98
        assert replies[98].startswith("421 4.7.0 Too many commands")
        assert await client.closed()

    run(tmp_path, steps, max_commands_per_minute=100)


def test_a_client_that_sends_and_never_reads_is_bounded(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.greet()
        client.writer.transport.pause_reading()
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 200_000_000:
                client.writer.write(b"NOOP\r\n" * 10_000)
                sent += 60_000
                await asyncio.wait_for(client.writer.drain(), 0.5)
        assert sent < 100_000_000  # the server stopped reading
        session = next(iter(site.servers["mx"]._sessions))
        assert session.conn.buffered < 1_000_000
        client.writer.transport.abort()

    run(tmp_path, steps, max_commands_per_minute=0, drain_timeout=0.1)


def test_shutdown_lets_a_message_end(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.in_data()
        async with connect(site) as idle:
            await idle.greet()
            drained = asyncio.ensure_future(site.servers["mx"].drain())
            assert (await idle.reply()).startswith("421 4.3.2")
        answer = await client.say(b"Subject: last\r\n\r\nx\r\n.\r\n")
        assert answer.startswith("250 2.0.0")
        assert (await client.reply()).startswith("421 4.3.2")
        await drained
        assert len(await site.host.mail(ALICE)) == 1

    run(tmp_path, steps)


def test_shutdown_cuts_off_who_never_ends(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.in_data()
        await site.servers["mx"].drain()
        assert await client.closed()

    run(tmp_path, steps, drain_timeout=0.1)


def test_over_quota_is_refused_at_rcpt_and_after_the_data(
    tmp_path: pathlib.Path,
) -> None:
    async def steps(site: Site, client: Client) -> None:
        await site.host.accounts.account_quota(ALICE, 3000)
        await client.greet()
        await client.say(b"MAIL FROM:<s@example.net> SIZE=5000\r\n")
        answer = await client.say(b"RCPT TO:<alice@example.org>\r\n")
        assert answer == "552 5.2.2 Mailbox is full"
        await client.say(b"RSET\r\n")
        client.writer.write(GROUP)
        for _ in range(3):
            await client.reply()
        answer = await client.say(b"Subject: big\r\n\r\n" + b"x" * 4000 + b"\r\n.\r\n")
        assert answer == "552 5.2.2 Mailbox is full"
        assert await site.host.mail(ALICE) == []

    run(tmp_path, steps)


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (MailError(Kind.UNAVAILABLE, "storage is down"), "451 4.3.0 Storage is down"),
        (MailError(Kind.STORAGE_FULL), "452 4.3.1 Storage full"),
        (RuntimeError("a secret"), "421 4.3.0 Internal error, closing connection"),
    ],
)
def test_failures_of_ours_are_temporary_and_say_no_secret(
    tmp_path: pathlib.Path, error: Exception, reply: str
) -> None:
    async def steps(site: Site, client: Client) -> None:
        async def failing(address: str, *, size: int = 0) -> None:
            raise error

        site.host.receive.check_recipient = failing  # type: ignore[method-assign] # broken
        await client.greet()
        await client.say(b"MAIL FROM:<s@example.net>\r\n")
        assert await client.say(b"RCPT TO:<alice@example.org>\r\n") == reply

    run(tmp_path, steps)


def test_a_failure_at_the_end_of_data_is_temporary(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.in_data()
        await site.host.databases[0].close()
        answer = await client.say(b"Subject: x\r\n\r\nx\r\n.\r\n")
        assert answer.startswith("451 4.3.0")
        assert (await client.say(b"NOOP\r\n")).startswith("250")

    run(tmp_path, steps)


def test_chunks_after_a_failed_one_are_no_message(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        receive = site.host.receive
        opening = receive.open

        async def failing(*_: object, **__: object) -> None:
            receive.open = opening  # type: ignore[method-assign] # mended
            raise MailError(Kind.UNAVAILABLE)

        receive.open = failing  # type: ignore[assignment, method-assign] # once
        await client.greet()
        client.writer.write(
            GROUP.removesuffix(b"DATA\r\n")
            + b"BDAT 5\r\nFirstBDAT 4 LAST\r\nRestNOOP\r\n"
        )
        answers = [(await client.reply())[:9] for _ in range(5)]
        assert answers[2:] == ["451 4.3.0", "503 5.5.1", "250 2.0.0"]
        assert await site.host.mail(ALICE) == []

    run(tmp_path, steps)


def test_lmtp_refuses_the_last_chunk_once_per_recipient(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, _: Client) -> None:
        async def failing(*_: object, **__: object) -> None:
            raise MailError(Kind.UNAVAILABLE)

        site.host.receive.open = failing  # type: ignore[assignment, method-assign] # down
        async with connect(site, "lmtp") as relay:
            await relay.reply()
            relay.writer.write(
                b"LHLO relay\r\nMAIL FROM:<s@example.net>\r\n"
                b"RCPT TO:<alice@example.org>\r\n"
                b"RCPT TO:<bob@example.org>\r\nBDAT 4 LAST\r\nRestNOOP\r\n"
            )
            answers = [(await relay.reply())[:9] for _ in range(7)]
        assert answers[4:] == ["451 4.3.0", "451 4.3.0", "250 2.0.0"]

    run(tmp_path, steps)


def test_garbage_instead_of_a_handshake_ends_the_connection(
    tmp_path: pathlib.Path,
) -> None:
    async def steps(site: Site, client: Client) -> None:
        await client.greet()
        assert (await client.say(b"STARTTLS\r\n")).startswith("220")
        client.writer.write(b"MAIL FROM:<s@example.net>\r\n" * 10)
        with contextlib.suppress(ConnectionError):
            await client.reader.read()
        await until(lambda: site.servers["mx"].connections == 0)

    run(tmp_path, steps)


def test_what_came_while_the_220_waited_is_forgotten(tmp_path: pathlib.Path) -> None:
    """RFC 3207 section 4.2: also when the write buffer was full at STARTTLS."""

    async def steps(site: Site, client: Client) -> None:
        await client.greet()
        session = next(iter(site.servers["mx"]._sessions))
        session.pause_writing()
        assert (await client.say(b"STARTTLS\r\n")).startswith("220")
        client.writer.write(b"EHLO injected.example.net\r\n")
        await until(lambda: session.conn.buffered > 0)
        session.resume_writing()
        await client.writer.start_tls(client_context())
        answer = await client.say(b"MAIL FROM:<s@example.net>\r\n")
        assert answer == "503 5.5.1 Send EHLO first"

    run(tmp_path, steps)


def test_a_changed_password_ends_the_session(tmp_path: pathlib.Path) -> None:
    async def steps(site: Site, client: Client) -> None:
        reader, writer = await asyncio.open_connection(
            *site.addresses["submissions"], ssl=client_context()
        )
        person = Client(reader, writer)
        await person.greet()
        token = base64.b64encode(f"\0{ALICE}\0{PASSWORD}".encode())
        assert (await person.say(b"AUTH PLAIN " + token + b"\r\n"))[:3] == "235"
        await site.host.accounts.account_passwd(ALICE, "another secret phrase")
        answer = await person.say(b"MAIL FROM:<alice@example.org>\r\n")
        assert answer.startswith("421 4.7.0")
        writer.close()

    run(tmp_path, steps)
