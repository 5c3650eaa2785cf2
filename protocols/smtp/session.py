"""The receiving side's commands (RFC 5321), one ``smtp_VERB`` method each.

The base class dispatches to them; they answer through ``reply`` and raise
CommandError or MailError for a refusal.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from auth.people import sasl
from mailserverd.core.errors import Kind as ErrorKind
from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import ERRORS
from mailserverd.core.types import Access, Peer, Recipient
from protocols.smtp import ext, login, replies
from protocols.smtp.conn import BadLine, Content, Line
from protocols.smtp.extension import MailParameters, Offer, RcptParameters
from protocols.smtp.frame import Disconnected, Frame, Goodbye
from protocols.smtp.settings import Kind
from protocols.smtp.transaction import (
    Transaction,
    read_mail_parameters,
    read_rcpt_parameters,
)
from protocols.smtp.wire.command import (
    CommandError,
    parse_bdat,
    parse_command,
    parse_helo,
    parse_path_arguments,
)
from protocols.smtp.wire.reply import Reply

if TYPE_CHECKING:
    from auth.people.authenticate import Principal
    from mailserverd.services.submission import Submission
    from protocols.smtp.server import SmtpServer
    from protocols.smtp.transaction import Incoming

log = get_logger("smtp")
MINUTE = 60.0
_GREETINGS = {
    Kind.MX: ("HELO", "EHLO"),
    Kind.SUBMISSION: ("HELO", "EHLO"),
    Kind.LMTP: ("LHLO",),
}


class Session(Frame):
    """One client's conversation."""

    def __init__(self, server: SmtpServer) -> None:
        super().__init__(server.settings.hostname)
        self.server = server
        self.settings = server.settings
        self._lmtp = server.kind is Kind.LMTP
        self.helo = ""
        self.extended = False
        self.principal: Principal | None = None
        self.transaction: Transaction | None = None
        self._errors = 0
        self._commands = 0
        self._minute = self.loop.time()

    # --- the conversation -----------------------------------------------------

    async def converse(self) -> None:
        """Greet, then obey until the client leaves."""
        refusal = self.server.enter(self)
        if refusal is not None:
            raise Goodbye(refusal)
        service = "LMTP" if self._lmtp else "ESMTP"
        self.reply(Reply(220, "", f"{self.settings.hostname} {service} ready"))
        while True:
            event = await self.event(self.settings.command_timeout)
            await self._obey(event)
            await self.breathe()

    def closed(self) -> None:
        """Let go of an unfinished message and of the place among connections."""
        self._forget_transaction()
        self.server.leave(self)

    @property
    def may_stop(self) -> bool:
        """True between transactions."""
        return self.transaction is None

    async def _obey(self, event: object) -> None:
        try:
            if isinstance(event, Line):
                await self._command(event.data)
            elif isinstance(event, BadLine):
                bad = replies.LINE_TOO_LONG if event.too_long else replies.BARE_LINE_END
                self._refuse(bad)
        except CommandError as error:
            self._refuse(Reply(error.code, error.enhanced, error.text))
        except MailError as error:
            self._refuse(self._refusal(error))

    async def _command(self, line: bytes) -> None:
        self._count_command()
        command = parse_command(line)
        method = self._smtp_methods.get(command.verb)
        if method is None or not self._speaks(command.verb):
            self.server.count("unknown")
            raise CommandError(*replies.UNKNOWN)
        self.server.count(command.verb)
        if command.verb != "BDAT":  # which must be read over even when out of order
            self.conn.check(command.verb)
        await method(command.argument)

    def _speaks(self, verb: str) -> bool:
        return verb not in {"HELO", "EHLO", "LHLO"} or (
            verb in _GREETINGS[self.server.kind]
        )

    def _count_command(self) -> None:
        limit = self.settings.max_commands_per_minute
        self._commands += 1
        if not limit or self._commands % limit:
            return
        now = self.loop.time()
        if now - self._minute < MINUTE:
            raise Goodbye(replies.TOO_MANY_COMMANDS)
        self._minute = now

    def _refuse(self, reply: Reply) -> None:
        """Answer an error; too many of them end the session."""
        self._errors += 1
        if self._errors >= self.settings.max_errors:
            log.info("too-many-errors", peer=self.peer_address)
            raise Goodbye(replies.TOO_MANY_ERRORS)
        self.reply(reply)

    def _refusal(self, error: MailError) -> Reply:
        """Count an error by its kind; return the reply that it deserves."""
        ERRORS.labels(self.server.kind.value, error.kind.value).inc()
        if error.kind is ErrorKind.INTERNAL:
            log.error("command-failed", peer=self.peer_address, exc_info=error)
        return replies.refusal(error)

    # --- greeting, TLS, authentication ----------------------------------------

    async def smtp_HELO(self, argument: str) -> None:
        """HELO: no extensions (RFC 5321 section 4.1.1.1)."""
        self._greeted(parse_helo(argument), "HELO")
        self.extended = False
        self.reply(Reply(250, "", self.settings.hostname))

    async def smtp_EHLO(self, argument: str) -> None:
        """EHLO: say what is offered now (RFC 5321 section 4.1.1.1)."""
        self._greeted(parse_helo(argument), "EHLO")
        self.extended = True
        lines = [self.settings.hostname]
        offer = self._offer()
        for extension in ext.EXTENSIONS:
            parameters = extension.advertise(offer)
            if parameters is not None:
                lines.append(f"{extension.keyword} {parameters}".rstrip())
        self.reply(Reply(250, "", "\n".join(lines)))

    async def smtp_LHLO(self, argument: str) -> None:
        """LHLO: as EHLO (RFC 2033 section 4.1)."""
        await self.smtp_EHLO(argument)

    def _greeted(self, helo: str, verb: str) -> None:
        self._forget_transaction()
        self.helo = helo
        self.conn.advance(verb)

    def _offer(self) -> Offer:
        may_log_in = (
            self.server.kind is Kind.SUBMISSION
            and bool(self.tls)
            and self.principal is None
        )
        return Offer(
            settings=self.settings,
            tls=bool(self.tls),
            tls_available=self.server.tls is not None,
            mechanisms=sasl.MECHANISMS if may_log_in else (),
        )

    async def smtp_STARTTLS(self, argument: str) -> None:
        """STARTTLS: everything said before it is forgotten (RFC 3207)."""
        _no_argument(argument)
        if self.server.tls is None:
            raise CommandError(*replies.TLS_UNAVAILABLE)
        if self.tls:
            raise CommandError(*replies.TLS_ACTIVE)
        self.reply(replies.START_TLS)
        self._forget_transaction()
        self.helo = ""
        await self.start_tls(self.server.tls())

    async def smtp_AUTH(self, argument: str) -> None:
        """AUTH mechanism [initial response] (RFC 4954), over TLS only."""
        authenticator = self.server.services.authenticator
        if self.server.kind is not Kind.SUBMISSION or authenticator is None:
            raise CommandError(*replies.AUTH_UNAVAILABLE)
        if not self.tls:
            raise CommandError(*replies.TLS_FIRST)
        if self.principal is not None:
            raise CommandError(*replies.AUTH_ACTIVE)
        try:
            credentials = await login.exchange(
                self, argument, self.settings.command_timeout
            )
        except login.Refused as refused:
            raise CommandError(*refused.reply) from None
        if credentials.authzid not in {"", credentials.user}:
            raise MailError(ErrorKind.AUTH_FAILED)
        try:
            self.principal = await authenticator.check_password(
                credentials.user,
                credentials.password,
                peer=self.peer_address,
                protocol="submission",
            )
        except MailError as error:
            if error.temporary:  # RFC 4954 section 4
                raise CommandError(454, "4.7.0", error.text) from error
            raise
        log.info("authenticated", peer=self.peer_address, user=self.principal.address)
        self.reply(replies.AUTH_DONE)

    # --- the envelope ---------------------------------------------------------

    async def smtp_MAIL(self, argument: str) -> None:
        """MAIL FROM:<reverse-path> parameters (RFC 5321 section 4.1.1.2)."""
        submission = self._submission()
        sender, is_ascii, params = parse_path_arguments(argument, "FROM:")
        self._check_extended(params)
        said = MailParameters(self.settings)
        read_mail_parameters(params, said)
        if not said.smtputf8 and not is_ascii:
            raise CommandError(*replies.NEEDS_UTF8)
        if submission is not None:
            await submission.check_sender(self._access(), sender)
        self.transaction = Transaction(sender, said)
        self.utf8_replies = said.smtputf8
        self.conn.advance("MAIL")
        self.reply(replies.SENDER_OK)

    async def smtp_RCPT(self, argument: str) -> None:
        """RCPT TO:<forward-path> parameters (RFC 5321 section 4.1.1.3)."""
        transaction = self._open_transaction()
        address, is_ascii, params = parse_path_arguments(argument, "TO:")
        self._check_extended(params)
        said = RcptParameters()
        read_rcpt_parameters(params, said)
        if not address:
            raise CommandError(553, "5.1.3", "A recipient is needed")
        if not transaction.parameters.smtputf8 and not is_ascii:
            raise CommandError(*replies.NEEDS_UTF8)
        if len(transaction.recipients) >= self.settings.max_recipients:
            raise CommandError(*replies.TOO_MANY_RECIPIENTS)
        size = transaction.parameters.size
        try:
            checker = self._submission() or self.server.services.receive
            await checker.check_recipient(address, size=size)
        except MailError as error:
            log.info(
                "recipient-refused",
                peer=self.peer_address,
                sender=transaction.reverse_path,
                recipient=address,
                reason=error.kind.value,
            )
            raise
        transaction.recipients.append(Recipient(address, said.notify, said.orcpt))
        self.conn.advance("RCPT")
        self.reply(replies.RECIPIENT_OK)

    def _check_extended(self, params: dict[str, str | None]) -> None:
        if params and not self.extended:
            raise CommandError(555, "5.5.4", "Parameters need EHLO")

    def _submission(self) -> Submission | None:
        """Return the submission service where it serves; refuse those not logged in."""
        submission = self.server.services.submission
        if self.server.kind is not Kind.SUBMISSION or submission is None:
            return None
        authenticator = self.server.services.authenticator
        if self.principal is None or authenticator is None:
            reply = replies.AUTH_FIRST if self.tls else replies.STARTTLS_FIRST
            raise CommandError(*reply)
        if not authenticator.still_valid(self.principal):
            raise Goodbye(replies.CREDENTIALS_CHANGED)
        return submission

    def _access(self) -> Access:
        account = self.principal.account if self.principal is not None else 0
        return Access(account, account)

    def _open_transaction(self) -> Transaction:
        if self.transaction is None:
            raise CommandError(503, "5.5.1", "Need MAIL first")
        return self.transaction

    # --- the content ----------------------------------------------------------

    async def smtp_DATA(self, argument: str) -> None:
        """DATA: everything up to CRLF.CRLF (RFC 5321 section 4.1.1.4)."""
        _no_argument(argument)
        transaction = self._open_transaction()
        await self._open_incoming(transaction)
        self.conn.start_data()
        self.reply(replies.START_DATA)
        await self._read_content(transaction)
        await self._finish(transaction)

    async def smtp_BDAT(self, argument: str) -> None:
        """BDAT octets [LAST]: exactly so many octets follow (RFC 3030 section 2)."""
        size, last = parse_bdat(argument)
        self.conn.start_chunk(size)
        try:
            self.conn.check("BDAT")
            transaction = self._open_transaction()
        except CommandError:
            await self._skip_chunk(size)
            if last and self._lmtp and self.transaction is not None:
                return  # no recipients, no replies: RFC 2033 section 4.3
            raise
        if transaction.incoming is None:
            try:
                await self._open_incoming(transaction)
            except MailError as error:
                transaction.fail(self._refusal(error))
        self.conn.advance("BDAT")
        await self._read_content(transaction)
        if last and self.conn.inside_line_end and transaction.problem is None:
            transaction.fail(replies.UNCLEAN)
        if last or transaction.problem is not None:
            await self._finish(transaction, last=last)
        else:
            self.reply(Reply(250, "2.0.0", f"{size} octets received"))

    async def _skip_chunk(self, size: int) -> None:
        if size > self.settings.max_message_size:
            raise Goodbye(replies.TOO_LARGE)
        end = False
        while not end:
            event = await self.event(self.settings.data_idle_timeout)
            end = not isinstance(event, Content) or event.end

    async def _open_incoming(self, transaction: Transaction) -> None:
        envelope, peer = transaction.envelope(), self._peer()
        transaction.deadline = self.loop.time() + self.settings.data_timeout
        submission = self._submission()
        incoming: Incoming
        if submission is not None:
            incoming = await submission.open(self._access(), envelope, peer)
        else:
            receive = self.server.services.receive
            incoming = await receive.open(envelope, peer, trusted=self._lmtp)
        transaction.incoming = incoming

    async def _read_content(self, transaction: Transaction) -> None:
        """Read to the end of the data, or of this BDAT."""
        idle = self.settings.data_idle_timeout
        while True:
            left = transaction.deadline - self.loop.time()
            if left <= 0:
                raise Goodbye(replies.TIMED_OUT)
            event = await self.event(min(idle, left))
            if not isinstance(event, Content):  # pragma: no cover - conn reads content
                raise Disconnected
            await self._write(transaction, event)
            if event.end:
                return

    async def _write(self, transaction: Transaction, content: Content) -> None:
        try:
            await transaction.write(content)
        except MailError as error:  # e.g. no space for the spool
            transaction.fail(self._refusal(error))
        if transaction.excessive:
            raise Goodbye(replies.TOO_LARGE)

    async def _finish(self, transaction: Transaction, *, last: bool = True) -> None:
        """Store the message; one reply, or one per recipient with LMTP.

        Not ``last`` is a BDAT that others were to follow: it has one reply always.
        """
        started = time.monotonic()
        incoming, transaction.incoming = transaction.incoming, None
        reply = transaction.problem
        if reply is None and incoming is not None:
            reply = await self._store(incoming, transaction)
        self.transaction = None
        self.conn.end_message()
        self.server.duration.observe(time.monotonic() - started)
        answer = reply or replies.INTERNAL_ERROR
        if self._lmtp and last:
            # One acceptance stores it for all or for none (RFC 2033 section 4.2).
            for _ in transaction.recipients[1:]:
                self.reply(answer)
        if answer.positive:
            self.reply(answer)
        else:
            self._refuse(answer)

    async def _store(self, incoming: Incoming, transaction: Transaction) -> Reply:
        try:
            receipt = await incoming.finish()
        except MailError as error:
            log.info(
                "message-refused",
                peer=self.peer_address,
                sender=transaction.reverse_path,
                recipients=len(transaction.recipients),
                reason=str(error),
            )
            return self._refusal(error)
        except Exception:
            log.exception("message-failed", sender=transaction.reverse_path)
            return replies.refusal(MailError(ErrorKind.INTERNAL))
        return Reply(250, "2.0.0", f"OK, stored as {receipt.message_id}")

    def _peer(self) -> Peer:
        return Peer(
            address=self.peer_address,
            port=int(self.peer[1]) if self.peer else 0,
            helo=self.helo,
            tls=self.tls,
            protocol=self._protocol_type(),
        )

    def _protocol_type(self) -> str:
        """Return the with-protocol-type (RFC 3848, RFC 6531 section 4.3)."""
        transaction = self.transaction
        if transaction is not None and transaction.parameters.smtputf8:
            name = "UTF8LMTP" if self._lmtp else "UTF8SMTP"
        elif self._lmtp:
            name = "LMTP"
        else:
            name = "ESMTP" if self.extended else "SMTP"
        if name == "SMTP":
            return name
        return name + "S" * bool(self.tls) + "A" * (self.principal is not None)

    def _forget_transaction(self) -> None:
        if self.transaction is not None:
            self.transaction.abort()
            self.transaction = None
        self.utf8_replies = False

    # --- the rest -------------------------------------------------------------

    async def smtp_RSET(self, argument: str) -> None:
        """RSET: forget the transaction (RFC 5321 section 4.1.1.5)."""
        _no_argument(argument)
        self._forget_transaction()
        self.conn.end_message()
        self.reply(replies.OK)

    async def smtp_NOOP(self, argument: str) -> None:
        """NOOP [string] (RFC 5321 section 4.1.1.9)."""
        self.reply(replies.OK)

    async def smtp_VRFY(self, argument: str) -> None:
        """VRFY: never tells who exists (RFC 5321 section 3.5.3)."""
        if not argument:
            raise CommandError(501, "5.5.4", "Syntax: VRFY address")
        self.reply(replies.CANNOT_VRFY)

    async def smtp_EXPN(self, argument: str) -> None:
        """EXPN: not implemented, for the same reason."""
        raise CommandError(*replies.NOT_IMPLEMENTED)

    async def smtp_HELP(self, argument: str) -> None:
        """HELP (RFC 5321 section 4.1.1.8)."""
        self.reply(replies.HELP)

    async def smtp_QUIT(self, argument: str) -> None:
        """QUIT (RFC 5321 section 4.1.1.10)."""
        _no_argument(argument)
        raise Goodbye(replies.BYE)


def _no_argument(argument: str) -> None:
    if argument:
        raise CommandError(*replies.NO_ARGUMENT)
