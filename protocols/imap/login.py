"""What LOGIN and AUTHENTICATE share: checking, limits, the state after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.types import Access
from protocols.imap.conn import Event
from protocols.imap.replies import Refused

if TYPE_CHECKING:
    from protocols.imap.extension import Context

log = get_logger("imap")


def require_privacy(context: Context) -> None:
    """Refuse before a password is sent in clear text (RFC 9051 section 11.1)."""
    if not context.private:
        raise Refused("PRIVACYREQUIRED", "use TLS before logging in")


async def log_in(context: Context, user: bytes, password: bytes) -> bytes:
    """Check a password and enter the authenticated state; returns the OK text.

    AUTH_FAILED, RATE_LIMITED; UNAVAILABLE, also when its shard is; LIMIT when the
    account has too many connections.
    """
    services = context.services
    try:
        principal = await services.authenticator.check_password(
            _text(user), password, peer=context.channel.transport.peer, protocol="imap"
        )
    except MailError as error:
        if error.kind in {Kind.AUTH_FAILED, Kind.RATE_LIMITED}:
            context.failures += 1
        raise
    await _look(context, principal.account)
    # From here on nobody else runs: what is counted must hold when it is written.
    open_now = context.sessions.get(principal.account, 0)
    if open_now >= services.settings.connections_per_account:
        raise MailError(Kind.LIMIT, "too many connections of this account")
    context.sessions[principal.account] = open_now + 1
    context.principal = principal
    context.advance(Event.LOGIN)
    transport = context.channel.transport
    log.info("login", account=principal.account, peer=transport.peer, tls=transport.tls)
    return b"[CAPABILITY %b] Logged in" % context.capabilities()


async def _look(context: Context, account: int) -> None:
    """Raise UNAVAILABLE while the account cannot be read (RFC 5530 section 3).

    A client that is let in takes what follows for the state of its mailboxes.
    """
    try:
        await context.services.mailboxes.state(Access(account, account))
    except MailError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        raise MailError(Kind.UNAVAILABLE, "mailboxes are not available now") from error


def _text(user: bytes) -> str:
    try:
        return user.decode("utf-8")
    except UnicodeDecodeError:
        return ""  # no such user, and no other answer than for a wrong password
