"""Sessions over a socket: limits, news, streaming, errors; real stores underneath."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import unittest.mock
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from protocols.imap.replies import CODES, refusal
from protocols.imap.services import ImapSettings
from tests.lib.clock import ManualClock
from tests.lib.imap import USER, Client, ImapHost, imap_host
from tests.lib.mailhost import PASSWORD
from tests.lib.waiting import until

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Coroutine

    from mailserverd.core.types import Access

MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nHello.\r\n"


def served(
    settings: ImapSettings | None = None, **how: Any
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make a test of a coroutine function that takes an ``ImapHost``."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        def run(tmp_path: pathlib.Path) -> None:
            async def whole() -> None:
                async with imap_host(tmp_path, settings, **how) as host:
                    await test(host)

            asyncio.run(whole())

        run.__name__ = test.__name__
        return run

    return decorate


def test_every_kind_has_a_response_code() -> None:
    assert set(CODES) == set(Kind)
    for kind in Kind:
        reply = refusal(MailError(kind, "why: \r\n\0 é"))
        assert reply.startswith(b"NO [%b] " % CODES[kind].encode())
        assert b"\r" not in reply
        assert reply.isascii()
    assert (
        refusal(MailError(Kind.INTERNAL, "secret")) == b"NO [SERVERBUG] internal error"
    )


# --- before login ---------------------------------------------------------------


@served(ImapSettings())
async def test_passwords_need_tls(host: ImapHost) -> None:
    client = await host.client(login=False)
    assert b"LOGINDISABLED" in client.greeting
    assert b"AUTH=" not in client.greeting
    for command in (f"LOGIN {USER} x", "AUTHENTICATE PLAIN AGEAYg=="):
        assert (await client.no(command)).startswith(b"NO [PRIVACYREQUIRED]")


@served(ImapSettings(), tls=True)
async def test_login_over_tls(host: ImapHost) -> None:
    client = await host.client()
    assert b"AUTH=PLAIN" in client.greeting
    assert b"STARTTLS" not in client.greeting
    assert (await client.no("STARTTLS")).startswith(b"BAD")


@served()
async def test_failed_logins_end_the_connection(host: ImapHost) -> None:
    client = await host.client(login=False)
    for _ in range(3):
        assert b"[AUTHENTICATIONFAILED]" in await client.no(f"LOGIN {USER} wrong")
    assert (await client.response()).startswith(b"* BYE")
    assert await client.response() == b""


@served(clock=ManualClock())
async def test_login_has_a_time_limit(host: ImapHost) -> None:
    slow, idle = await host.client(login=False), await host.client()
    slow.send(b"a NOOP\r\n")
    await slow.finish("a")
    host.host.clock.move(61)
    slow.send(b"a")  # a trickle does not help
    await asyncio.sleep(0)
    await host.server.sweep()
    assert b"* BYE [UNAVAILABLE]" in await slow.response()
    host.host.clock.move(1700)
    await host.server.sweep()
    await idle.ok("NOOP")
    await host.server.sweep()
    host.host.clock.move(1900)
    await host.server.sweep()
    assert (await idle.response()).startswith(b"* BYE autologout")
    assert not host.server.sessions


@served(ImapSettings(plaintext_auth=True, connections_per_account=2))
async def test_connections_of_an_account_are_limited(host: ImapHost) -> None:
    first, second = await host.client(), await host.client()
    third = await host.client(login=False)
    assert b"NO [LIMIT]" in await third.no(f'LOGIN {USER} "{PASSWORD}"')
    await first.ok("LOGOUT")
    await third.ok(f'LOGIN {USER} "{PASSWORD}"')
    await second.ok("NOOP")


@served(ImapSettings(plaintext_auth=True, connections_per_account=2))
async def test_connections_that_log_in_at_once_are_all_counted(host: ImapHost) -> None:
    """Also while the database takes its time."""
    mailboxes = host.host.mailboxes
    state, gate, waiting = mailboxes.state, asyncio.Event(), []

    async def slowly(access: Access) -> Any:
        waiting.append(access)
        await gate.wait()
        return await state(access)

    clients = [await host.client(login=False) for _ in range(4)]
    with unittest.mock.patch.object(type(mailboxes), "state", lambda _, a: slowly(a)):
        asked = [
            asyncio.create_task(client.run(f'LOGIN {USER} "{PASSWORD}"'))
            for client in clients
        ]
        await until(lambda: len(waiting) == len(clients))
        gate.set()
        answers = [(await one)[0] for one in asked]
    assert sum(answer.startswith(b"OK") for answer in answers) == 2, answers
    for client, answer in zip(clients, answers, strict=True):
        if answer.startswith(b"OK"):
            await client.ok("LOGOUT")
    again = await host.client()
    await again.ok("NOOP")


@served()
async def test_a_changed_password_ends_sessions(host: ImapHost) -> None:
    idle, busy = await host.client(), await host.client()
    tag = idle.begin("IDLE")
    assert await idle.response() == b"+ idling"
    await host.host.accounts.account_passwd(USER, "something else entirely")
    with pytest.raises(EOFError):
        await busy.run("NOOP")
    await host.server.sweep()
    assert (await idle.response()).startswith(b"* BYE [UNAVAILABLE] credentials")
    assert tag


# --- news -----------------------------------------------------------------------


@served()
async def test_idle_tells_what_others_do(host: ImapHost) -> None:
    idle, other = await host.client(), await host.client()
    await idle.ok("SELECT INBOX")
    await other.ok("SELECT INBOX")
    tag = idle.begin("IDLE")
    assert await idle.response() == b"+ idling"
    await host.host.send(MESSAGE, USER)
    assert await idle.response() == b"* 1 EXISTS"
    await other.ok("NOOP")
    await other.ok("STORE 1 +FLAGS (\\Deleted)")
    assert await idle.response() == b"* 1 FETCH (FLAGS (\\Deleted))"
    assert await other.ok("EXPUNGE") == [b"* 1 EXPUNGE"]
    assert await idle.response() == b"* 1 EXPUNGE"
    idle.send(b"DONE\r\n")
    assert await idle.finish(tag) == (b"OK IDLE completed", [])
    await other.append("INBOX", MESSAGE)
    assert await idle.ok("NOOP") == [b"* 1 EXISTS"]


@served()
async def test_idle_in_one_of_several_mailboxes(host: ImapHost) -> None:
    first, second = await host.client(), await host.client()
    await first.ok("SELECT INBOX")
    await second.ok("SELECT Archive")
    for client in (first, second):
        client.begin("IDLE")
        assert await client.response() == b"+ idling"
    third = await host.client()
    for _ in range(3):
        await third.append("Archive", MESSAGE)
    assert [await second.response() for _ in range(3)][-1] == b"* 3 EXISTS"
    await third.append("INBOX", MESSAGE)
    assert await first.response() == b"* 1 EXISTS"


@served()
async def test_expunges_wait_for_their_moment(host: ImapHost) -> None:
    reader, other = await host.client(), await host.client()
    for _ in range(3):
        await other.append("INBOX", MESSAGE)
    await reader.ok("SELECT INBOX")
    await other.ok("SELECT INBOX")
    await other.ok("STORE 2 +FLAGS.SILENT (\\Deleted)")
    await other.ok("EXPUNGE")
    reply, told = await reader.run("FETCH 1:3 UID")
    assert told == [b"* 1 FETCH (UID 1)", b"* 3 FETCH (UID 3)"]
    assert reply.startswith(b"OK [EXPUNGEISSUED]")
    assert await reader.ok("SEARCH ALL") == [b"* SEARCH 1 3"]
    assert (await reader.no("STORE 1:3 +FLAGS (\\Seen)")).startswith(
        b"NO [EXPUNGEISSUED]"
    )
    assert (await reader.no("COPY 2 Archive")).startswith(b"NO [EXPUNGEISSUED]")
    assert (
        await reader.ok("UID FETCH 1:3 FLAGS") == [b"* 2 EXPUNGE"]
        or await reader.ok("NOOP") == []
    )
    assert await reader.ok("FETCH 2 UID") == [b"* 2 FETCH (UID 3)"]


@served()
async def test_a_deleted_mailbox_ends_who_looks_at_it(host: ImapHost) -> None:
    await (maker := await host.client()).ok("CREATE gone")
    idle, reader = await host.client(), await host.client()
    for client in (idle, reader):
        await client.ok("SELECT gone")
    idle.begin("IDLE")
    assert await idle.response() == b"+ idling"
    await maker.ok("DELETE gone")
    assert (await idle.response()).startswith(b"* BYE the selected mailbox is gone")
    with pytest.raises(EOFError):
        await reader.run("NOOP")


@served()
async def test_views_are_released(host: ImapHost) -> None:
    client = await host.client()
    await client.ok("SELECT INBOX")
    assert len(host.server.views._watches) == 1
    await client.ok("SELECT Archive")
    await client.ok("UNSELECT")
    assert not host.server.views._watches
    assert len(host.server.views._resting) == 2
    await client.ok("SELECT INBOX")
    await client.close()
    await until(lambda: not host.server.sessions)
    assert not host.server.views._watches
    assert not host.server._per_account


# --- pipelining, back-pressure, streaming ---------------------------------------


@served()
async def test_pipelined_commands_are_one_write(host: ImapHost) -> None:
    client = await host.client()
    connection = next(iter(host.connections))
    before = len(connection.writes)
    client.send(b"".join(b"p%d NOOP\r\n" % n for n in range(40)))
    await client.finish("p39")
    assert len(connection.writes) == before + 1


@served()
async def test_a_large_message_streams_with_back_pressure(host: ImapHost) -> None:
    client = await host.client()
    body = os.urandom(8_000_000).hex().encode()
    message = MESSAGE + b"\r\n".join(body[i : i + 76] for i in range(0, len(body), 76))
    assert (await client.append("INBOX", message)).startswith(b"OK")
    await client.ok("SELECT INBOX")
    connection = next(iter(host.connections))
    tag = client.begin("FETCH 1 BODY.PEEK[]")
    await until(lambda: connection.session.channel.congested)
    written = sum(map(len, connection.writes))
    assert written < len(message) // 2  # it waits for us
    (response,) = (await client.finish(tag))[1]
    head, _, rest = response.partition(b"\r\n")
    assert head == b"* 1 FETCH (BODY[] {%d}" % len(message)
    assert rest == message + b")"
    assert max(map(len, connection.writes)) <= 320 * 1024
    (part,) = await client.ok("FETCH 1 BODY.PEEK[]<1000000.2000000>")
    assert part.partition(b"\r\n")[2] == message[1000000:3000000] + b")"


@served()
async def test_a_peer_that_hangs_up_in_the_middle(host: ImapHost) -> None:
    client = await host.client()
    await client.append("INBOX", MESSAGE + b"x" * 2_000_000)
    await client.ok("SELECT INBOX")
    client.begin("FETCH 1 BODY[]")
    await client.close()
    other = await host.client()
    other.begin("APPEND INBOX {100000}")
    assert (await other.response()).startswith(b"+")
    other.send(b"half")
    await other.close()
    await until(lambda: not host.server.sessions)
    assert len(await host.host.mail(USER)) == 1


@served()
async def test_binary_is_decoded_in_chunks(host: ImapHost) -> None:
    client = await host.client()
    data = os.urandom(400_000)
    message = (
        (
            b"Content-Type: application/octet-stream\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(data)
        )
        .replace(b"\r\n", b"\n")
        .replace(b"\n", b"\r\n")
    )
    await client.append("INBOX", message)
    await client.ok("SELECT INBOX")
    (size,) = await client.ok("FETCH 1 BINARY.SIZE[1]")
    assert size == b"* 1 FETCH (BINARY.SIZE[1] 400000)"
    (whole,) = await client.ok("FETCH 1 BINARY.PEEK[1]")
    assert whole == b"* 1 FETCH (BINARY[1] ~{400000}\r\n" + data + b")"
    (part,) = await client.ok("FETCH 1 BINARY.PEEK[1]<390000.99999>")
    assert part == b"* 1 FETCH (BINARY[1]<390000> ~{10000}\r\n" + data[390000:] + b")"


@served()
async def test_octets_behind_starttls_are_refused(host: ImapHost) -> None:
    client = await host.client(login=False)
    next(iter(host.connections)).can_start_tls = True
    client.send(b"a STARTTLS\r\nb NOOP\r\n")
    reply, _ = await client.finish("a")
    assert reply.startswith(b"BAD")


# --- errors ---------------------------------------------------------------------


@served()
async def test_a_bug_is_answered_and_hidden(host: ImapHost) -> None:
    client = await host.client()
    host.host.mailboxes.subscriptions = None  # type: ignore[assignment, method-assign]
    reply = await client.no('LSUB "" "*"')
    assert reply == b"NO [SERVERBUG] internal error"
    await client.ok("NOOP")


@served()
async def test_a_missing_blob_is_a_temporary_error(host: ImapHost) -> None:
    client = await host.client()
    await client.append("INBOX", MESSAGE)
    await client.append("INBOX", MESSAGE + b"x" * 500_000)
    await client.ok("SELECT INBOX")

    async def damaged(*_: object) -> bytes:
        raise MailError(Kind.UNAVAILABLE, "blob is damaged")

    async def torn(*_: object) -> Any:
        yield b"x" * 1000
        raise MailError(Kind.UNAVAILABLE, "blob is damaged")

    read = host.host.messages.read_blob
    host.host.messages.read_blob = damaged  # type: ignore[method-assign]
    host.host.messages.stream_blob = torn  # type: ignore[method-assign]
    for which in ("1", "2", "1:*"):
        reply = await client.no(f"FETCH {which} BODY.PEEK[]")
        assert reply == b"NO [UNAVAILABLE] blob is damaged"
    host.host.messages.read_blob = read  # type: ignore[method-assign]
    with pytest.raises((EOFError, asyncio.IncompleteReadError, ConnectionError)):
        await client.run("FETCH 2 BODY.PEEK[]")


@served()
async def test_over_quota(host: ImapHost) -> None:
    client = await host.client()
    access = await host.host.account(USER)
    await host.host.mailboxes.set_quota(access.account, 4096)
    assert (await client.append("INBOX", MESSAGE)).startswith(b"OK")
    assert (await client.ok('GETQUOTA ""')) == [b'* QUOTA "" (STORAGE 1 4)']
    tag = client.begin("APPEND INBOX {5000}")
    assert (await client.finish(tag))[0].startswith(b"NO [OVERQUOTA]")


@served()
async def test_two_accounts_do_not_meet(host: ImapHost) -> None:
    alice, bob = await host.client(), await host.client("bob@example.org")
    await alice.append("INBOX", MESSAGE)
    await alice.ok("SELECT INBOX")
    assert b"* 0 EXISTS" in await bob.ok("SELECT INBOX")
    assert await bob.ok("UID FETCH 1:* BODY[]") == []


@served()
async def test_shutdown_says_bye(host: ImapHost) -> None:
    client = await host.client()
    client.begin("IDLE")
    assert await client.response() == b"+ idling"
    for session in tuple(host.server.sessions):
        session.end("server is shutting down", "UNAVAILABLE")
    told = await client.response()
    assert told == b"* BYE [UNAVAILABLE] server is shutting down"
    assert await client.response() == b""


async def _spam(client: Client, text: bytes) -> None:
    client.send(text)
    with contextlib.suppress(EOFError, ConnectionError, TimeoutError):
        while await client.response():
            pass


@served()
async def test_many_errors_end_even_a_login(host: ImapHost) -> None:
    client = await host.client()
    await _spam(client, b"x NONSENSE\r\n" * 100)
    assert not host.server.sessions
