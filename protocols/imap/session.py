"""One connection's conversation: greeting, commands one after another, farewell.

The only place where commands are looked up, run, answered and measured.  Whatever goes
wrong inside a command ends as one tagged reply: BAD for grammar, NO with a response
code for a refusal, ``NO [SERVERBUG]`` for a bug, which is logged.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from mailserverd.core import metrics
from mailserverd.core.errors import MailError
from mailserverd.core.log import get_logger
from protocols.imap import replies
from protocols.imap.channel import (
    BrokenStreamError,
    Channel,
    ConnectionLostError,
    Literal,
)
from protocols.imap.conn import State
from protocols.imap.extension import Context
from protocols.imap.views import MailboxGoneError
from protocols.imap.wire import encode
from protocols.imap.wire.errors import WireError
from protocols.imap.wire.reader import AUTHENTICATED, Append, Command, Malformed

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter

    from protocols.imap import extension
    from protocols.imap.channel import Transport
    from protocols.imap.extension import Registry
    from protocols.imap.services import ImapServices
    from protocols.imap.views import Views
    from protocols.imap.wire.reader import Event as WireEvent

log = get_logger("imap")
DURATION = metrics.DURATION.labels("imap")


class Session:
    """One connection; ``run`` is its task."""

    __slots__ = (
        "_bye",
        "_context",
        "_errors",
        "_since",
        "channel",
        "on_end",
        "services",
    )

    def __init__(
        self,
        services: ImapServices,
        registry: Registry,
        views: Views,
        sessions: dict[int, int],
        transport: Transport,
    ) -> None:
        self.services = services
        self.channel = Channel(transport)
        self._context = Context(services, registry, views, sessions, self.channel)
        self._errors = 0  # BAD answers in a row
        self._since = services.clock.monotonic()  # last command, or the start
        self._bye = b""  # what ``end`` wants said
        self.on_end: Callable[[Session], None] = _nothing

    async def run(self) -> None:
        """Serve the connection until it ends; never raises."""
        context = self._context
        try:
            context.send(b"* OK [CAPABILITY %b] Ready\r\n" % context.capabilities())
            while context.state is not State.LOGOUT:
                await self._serve(await self.channel.event())
        except ConnectionLostError:
            pass
        except BrokenStreamError as error:
            self._say_bye(str(error))
        except MailboxGoneError:
            self._say_bye("the selected mailbox is gone; select it again")
        except Exception:
            log.exception("session-failed", peer=self.channel.transport.peer)
            self._say_bye("internal error")
        finally:
            self._leave()

    def _leave(self) -> None:
        context = self._context
        if self._bye:
            self.channel.send(self._bye)
        self.channel.flush()
        if context.selected is not None:
            context.views.release(context.selected)
            context.selected = None
        if context.principal is not None:
            account = context.principal.account
            context.sessions[account] -= 1
            if not context.sessions[account]:
                del context.sessions[account]
        context.state = State.LOGOUT
        self.channel.transport.close()
        self.on_end(self)

    def _say_bye(self, text: str, code: str = "") -> None:
        prefix = b"[%b] " % code.encode("ascii") if code else b""
        self._bye = b"* BYE %b%b\r\n" % (prefix, encode.text(text))

    def end(self, text: str, code: str = "") -> None:
        """Say BYE and close: at once while idle, else after the running command."""
        if not self._bye:
            self._say_bye(text, code)
        self.channel.stop()

    def check(self, now: float) -> None:
        """End the session when its time is over or its password changed.

        ``now`` is monotonic; called every few seconds by ``net``.
        """
        settings, context = self.services.settings, self._context
        if self.channel.active and context.principal is not None:
            self._since = now
        self.channel.active = False
        if context.principal is None:
            if now - self._since > settings.login_time:
                self.end("login took too long", "UNAVAILABLE")
                self._abort_if_stuck()
        elif not self.services.authenticator.still_valid(context.principal):
            self.end("credentials changed; log in again", "UNAVAILABLE")
        elif now - self._since > settings.idle_time:
            self.end("autologout; idle for too long")
            self._abort_if_stuck()

    def _abort_if_stuck(self) -> None:
        """A peer that takes no octets is not waited for."""
        if self.channel.congested:
            self.channel.transport.abort()

    @property
    def account(self) -> int:
        """The account that logged in, or 0."""
        principal = self._context.principal
        return principal.account if principal is not None else 0

    # --- commands ---------------------------------------------------------------

    async def _serve(self, event: WireEvent) -> None:
        if self._context.principal is not None:
            self._since = self.services.clock.monotonic()
        if isinstance(event, Command):
            await self._command(event)
        elif isinstance(event, Append):
            await self._append(event)
        elif isinstance(event, Malformed):
            self._bad(event.tag, event.text)

    async def _append(self, event: Append) -> None:
        literal = self._context.literal = Literal(self.channel, event)
        try:
            await self._command(Command(event.tag, "APPEND", event.args))
        finally:
            self._context.literal = None
            await literal.finish()

    async def _command(self, event: Command) -> None:
        context = self._context
        command = context.registry.commands.get(event.name)
        if command is None:
            self._bad(event.tag, "unknown command")
            return
        if context.state not in command.states:
            self._bad(event.tag, f"not possible while {context.state.value}")
            return
        if not self._still_welcome():
            raise ConnectionLostError
        context.tag = event.tag
        started = self.services.clock.monotonic()
        reply = await self._run(command, event)
        if command.news and context.selected is not None:
            await self._news(command)
        self.channel.send(b"%b %b\r\n" % (event.tag.encode("ascii"), reply))
        self._after(command)
        if command.timed:
            DURATION.observe(self.services.clock.monotonic() - started)
        _served(command.name).inc()

    def _still_welcome(self) -> bool:
        principal = self._context.principal
        if principal is None or self.services.authenticator.still_valid(principal):
            return True
        self._say_bye("credentials changed; log in again", "UNAVAILABLE")
        return False

    async def _run(self, command: extension.Command, event: Command) -> bytes:
        """Run a command; return what stands behind the tag."""
        try:
            if self._context.selected is not None and command.news:
                await self._catch_up()
            done = await command.run(self._context, event.args)
        except WireError as error:
            self._errors += 1
            return b"BAD " + encode.text(error.text)
        except replies.Refused as error:
            return error.reply()
        except MailError as error:
            metrics.ERRORS.labels("imap", error.kind.name.lower()).inc()
            if error.temporary:
                log.warning("command-failed", command=command.name, error=str(error))
            return replies.refusal(error)
        except (ConnectionLostError, BrokenStreamError, MailboxGoneError):
            raise
        except Exception:
            metrics.ERRORS.labels("imap", "internal").inc()
            log.exception("command-crashed", command=command.name)
            return replies.no("SERVERBUG", "internal error")
        self._errors = 0
        return b"OK " + (done or f"{command.name} completed".encode("ascii"))

    async def _catch_up(self) -> None:
        """Apply what was announced since; nothing is told yet."""
        context = self._context
        if context.views.behind(context.mailbox):
            await context.refresh()

    async def _news(self, command: extension.Command) -> None:
        """Tell what changed, before the tagged reply (RFC 9051 section 7)."""
        try:
            await self._catch_up()
        except MailError as error:
            log.warning("refresh-failed", error=str(error))
        self._context.tell(expunge=command.breaks_seqs)

    def _after(self, command: extension.Command) -> None:
        """Follow what the command did to the connection itself."""
        context = self._context
        if context.after_reply is not None:
            action, context.after_reply = context.after_reply, None
            self.channel.flush()
            action()
        if context.principal is not None:
            self.channel.reader.limits = AUTHENTICATED
        elif context.failures >= self.services.settings.login_failures:
            self._say_bye("too many failed logins")
            raise ConnectionLostError
        self._check_errors()

    def _bad(self, tag: str, text: str) -> None:
        self._errors += 1
        self.channel.send(b"%b BAD %b\r\n" % (tag.encode("ascii"), encode.text(text)))
        self._check_errors()

    def _check_errors(self) -> None:
        settings = self.services.settings
        before = self._context.principal is None
        if self._errors > (settings.pre_auth_errors if before else settings.errors):
            self._say_bye("too many errors")
            raise ConnectionLostError


@functools.cache
def _served(command: str) -> Counter:
    """Return the counter of a command of the registry."""
    return metrics.REQUESTS.labels("imap", command)


def _nothing(_: Session) -> None:
    """Nobody waits for the end."""
