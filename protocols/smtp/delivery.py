"""Delivering to another server: the client's conversation over a stream.

Commands go out pipelined where the server allows it (RFC 2920); TLS is opportunistic
(RFC 3207, RFC 7435): taken where offered, not verified, since anyone who could forge
the certificate could as well have removed the offer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.log import get_logger
from mailserverd.services.relay import HostFailed, Said, TlsFailed
from protocols.smtp import client
from protocols.smtp.client import Answer, ClientConnection
from protocols.smtp.wire.data import END as END_OF_DATA
from protocols.smtp.wire.data import stuff
from protocols.smtp.wire.reply import Reply, ReplyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.core.ports import Connector, Stream
    from mailserverd.core.types import Recipient
    from mailserverd.services.relay import Outbound
    from mailserverd.services.routes import Host

MAX_MESSAGES = 100  # over one connection
MAX_ROUNDS = 20  # transactions for recipients that the server put off with 452
TOO_MANY = 452  # RFC 5321 section 4.5.3.1.10
LAST_WORDS = 2.0  # seconds to read why the server hung up
log = get_logger("smtp-out")


@dataclasses.dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each step (RFC 5321 section 4.5.3.2)."""

    connect: float = 30
    greeting: float = 300
    command: float = 300
    data: float = 120
    block: float = 180
    end: float = 600


class SmtpDialer:
    """Opens conversations; ``hostname`` is what EHLO says."""

    def __init__(
        self, connector: Connector, hostname: str, timeouts: Timeouts = Timeouts()
    ) -> None:
        self._connector = connector
        self._hostname = hostname
        self._timeouts = timeouts
        self._leaving: set[asyncio.Task[None]] = set()

    async def dial(self, host: Host, *, tls: bool) -> SmtpConversation:
        """Connect, greet, and start TLS where it is offered and wanted."""
        try:
            stream = await self._connector.connect(
                host.address, host.port, time_limit=self._timeouts.connect
            )
        except OSError as error:  # TimeoutError is one
            reason = str(error) or "timed out"
            text = f"connection to {host.name}[{host.address}] failed: {reason}"
            raise HostFailed(Said(451, "4.4.1", text)) from error
        conversation = SmtpConversation(stream, host, self._timeouts, self._leaving)
        try:
            await conversation.open(self._hostname, tls=tls)
        except BaseException:
            stream.close()
            raise
        return conversation

    async def close(self) -> None:
        """Wait for conversations that take their leave."""
        if self._leaving:
            await asyncio.wait(self._leaving)


class SmtpConversation:
    """One connection, for one message after the other."""

    def __init__(
        self,
        stream: Stream,
        host: Host,
        timeouts: Timeouts,
        leaving: set[asyncio.Task[None]],
    ) -> None:
        self._leaving = leaving
        self._stream = stream
        self._host = host
        self._timeouts = timeouts
        self._client = ClientConnection()
        self._answers: collections.deque[Answer] = collections.deque()
        self._messages = 0
        self._dirty = False  # a transaction is open
        self._broken = False
        self.tls = ""

    @property
    def usable(self) -> bool:
        """True while another message may be sent."""
        fresh = self._messages < MAX_MESSAGES
        return fresh and not (self._broken or self._client.closing)

    # --- opening --------------------------------------------------------------

    async def open(self, hostname: str, *, tls: bool) -> None:
        """Greet; HostFailed when the server does not want to speak with us."""
        answer = await self._answer(self._timeouts.greeting)
        if answer.reply.code != client.SERVICE_READY:
            raise self._failed(answer.reply, "greeted us with")
        await self._ehlo(hostname)
        if tls and "STARTTLS" in self._client.features:
            await self._start_tls(hostname)

    async def _ehlo(self, hostname: str) -> None:
        reply = await self._ask(client.EHLO, f"EHLO {hostname}")
        if not reply.positive and not self._client.closing:
            reply = await self._ask(client.HELO, f"HELO {hostname}")
        if not reply.positive:
            raise self._failed(reply, "answered EHLO with")

    async def _start_tls(self, hostname: str) -> None:
        reply = await self._ask(client.STARTTLS, "STARTTLS")
        if reply.code != client.SERVICE_READY:
            return  # offered, but not now: opportunistic
        try:
            self._client.start_tls()
            self.tls = await self._stream.start_tls(self._host.name, verify=False)
        except (OSError, ReplyError) as error:
            self._broken = True
            text = f"TLS with {self._where} failed: {error}"
            raise TlsFailed(Said(451, "4.7.5", text)) from error
        await self._ehlo(hostname)

    @property
    def _where(self) -> str:
        return f"{self._host.name}[{self._host.address}]"

    def _failed(self, reply: Reply, how: str) -> HostFailed:
        """Another host may be better; none of this is final."""
        text = f"{self._where} {how} {reply.line}"
        self._broken = True
        return HostFailed(Said(451, "4.4.2", text, self._host.name))

    # --- one message ----------------------------------------------------------

    async def deliver(self, message: Outbound) -> tuple[Said, ...]:
        """Send a message; returns what was said, per recipient."""
        refusal = client.obstacle(
            message.envelope,
            self._client.features,
            size=message.size,
            eight_bit=message.eight_bit,
        )
        recipients = message.envelope.recipients
        if refusal is not None:
            return tuple(self._said(refusal) for _ in recipients)
        said: dict[Recipient, Said] = {}
        left: Sequence[Recipient] = recipients
        for _ in range(MAX_ROUNDS):
            try:
                replies = await self._transaction(message, left)
            except HostFailed as error:
                if not said:
                    raise
                replies = [error.said] * len(left)
            said.update(zip(left, replies, strict=True))
            put_off = [r for r in left if said[r].code == TOO_MANY]
            if len(put_off) in {0, len(left)} or not self.usable:
                break
            left = put_off
        return tuple(said[recipient] for recipient in recipients)

    async def _transaction(
        self, message: Outbound, recipients: Sequence[Recipient]
    ) -> list[Said]:
        self._messages += 1
        lines = client.transaction_lines(
            message.envelope,
            recipients,
            self._client.features,
            size=message.size,
            eight_bit=message.eight_bit,
        )
        if self._dirty:
            lines.insert(0, (client.RSET, "RSET"))
        self._dirty = True
        if "PIPELINING" in self._client.features:
            replies = await self._send_group(lines)
        else:
            replies = await self._send_singly(lines)
        return await self._conclude(message, recipients, replies)

    async def _send_group(self, lines: list[tuple[str, str]]) -> list[Answer]:
        """Send all commands at once; a server that hangs up ends the list early."""
        await self._write(self._client.commands(lines))
        answers = []
        for name, _ in lines:
            limit = (
                self._timeouts.data if name == client.DATA else self._timeouts.command
            )
            answers.append(await self._answer(limit))
            if answers[-1].reply.code == client.CLOSING:
                break
        return answers

    async def _send_singly(self, lines: list[tuple[str, str]]) -> list[Answer]:
        """Send one command after the other, and none that would be of no use."""
        answers: list[Answer] = []
        accepted = False
        for name, line in lines:
            if name == client.DATA and not accepted:
                break
            reply = await self._ask(name, line)
            answers.append(Answer(name, reply))
            accepted |= name == client.RCPT and reply.positive
            if self._client.closing or (name == client.MAIL and not reply.positive):
                break
        return answers

    async def _conclude(
        self,
        message: Outbound,
        recipients: Sequence[Recipient],
        answers: list[Answer],
    ) -> list[Said]:
        """Send the content when somebody is to get it; sort out the replies."""
        by_command: dict[str, list[Reply]] = collections.defaultdict(list)
        for answer in answers:
            by_command[answer.command].append(answer.reply)
        mail, rcpt = by_command[client.MAIL], by_command[client.RCPT]
        said = [self._said(reply) for reply in rcpt]
        if mail and not mail[0].positive:
            said = [self._said(mail[0])] * len(recipients)
        else:  # the server hung up before it answered all of them
            missing = len(recipients) - len(said)
            said += [self._said(answers[-1].reply)] * missing
        accepted = [one.delivered for one in said]
        final = await self._content(message, by_command[client.DATA], any(accepted))
        if final is None:
            return [self._undecided(s) if s.delivered else s for s in said]
        return [
            self._said(final) if taken else one
            for taken, one in zip(accepted, said, strict=True)
        ]

    def _undecided(self, said: Said) -> Said:
        """A recipient that was accepted in a transaction that went nowhere."""
        return Said(451, "4.4.2", f"{self._where} ended the session", said.mta)

    async def _content(
        self, message: Outbound, data: list[Reply], wanted: bool
    ) -> Reply | None:
        """Return the last word on the accepted recipients; None when there is none."""
        if not data:
            return None
        if data[0].code != client.START_INPUT:
            return data[0]
        if not wanted:  # RFC 2920 section 3.1: it must be ended all the same
            await self._write(END_OF_DATA[2:])
            await self._answer(self._timeouts.end)
            return None
        reply = await self._send_content(message)
        self._dirty = False
        return reply

    async def _send_content(self, message: Outbound) -> Reply:
        at_line_start = True
        try:
            async for chunk in message.content():
                if not chunk:
                    continue
                await self._write(stuff(chunk, at_line_start=at_line_start))
                at_line_start = chunk.endswith(b"\n")
            await self._write(END_OF_DATA[2:] if at_line_start else END_OF_DATA)
            return (await self._answer(self._timeouts.end)).reply
        except HostFailed as error:
            reply = await self._last_words()
            if reply is not None:
                return reply
            # Whether the message was taken is unknown: it must be tried again.
            return Reply(error.said.code, error.said.status, error.said.text)

    async def _last_words(self) -> Reply | None:
        """Read why the server hung up while we were writing."""
        if self._answers:
            return self._answers.popleft().reply
        self._broken = False
        with contextlib.suppress(HostFailed):
            return (await self._answer(LAST_WORDS)).reply
        return None

    def _said(self, reply: Reply) -> Said:
        return Said(
            reply.code,
            reply.enhanced,
            reply.text.replace("\n", " "),
            self._host.name,
            dsn="DSN" in self._client.features,
        )

    # --- octets ---------------------------------------------------------------

    async def _ask(self, name: str, line: str) -> Reply:
        await self._write(self._client.command(name, line))
        limit = self._timeouts.data if name == client.DATA else self._timeouts.command
        return (await self._answer(limit)).reply

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeouts.block):
                await self._stream.write(data)
        except OSError as error:
            raise self._lost(error) from error

    async def _answer(self, limit: float) -> Answer:
        """Return the next answer; HostFailed when none comes."""
        try:
            async with asyncio.timeout(limit):
                while not self._answers:
                    data = await self._stream.read()
                    if not data:
                        raise ConnectionResetError("connection closed")
                    self._answers.extend(self._client.receive(data))
        except (OSError, ReplyError) as error:
            raise self._lost(error) from error
        return self._answers.popleft()

    def _lost(self, error: Exception) -> HostFailed:
        self._broken = True
        reason = str(error) or "timed out"
        text = f"session with {self._where} broke: {reason}"
        return HostFailed(Said(451, "4.4.2", text, self._host.name))

    def close(self) -> None:
        """Take leave in the background; never raises."""
        if self._broken or self._client.closing:
            self._stream.close()
            return
        self._broken = True
        task = asyncio.get_running_loop().create_task(self._quit())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _quit(self) -> None:
        try:
            with contextlib.suppress(HostFailed):
                async with asyncio.timeout(LAST_WORDS):
                    await self._ask(client.QUIT, "QUIT")
        except TimeoutError:
            pass
        finally:
            self._stream.close()
