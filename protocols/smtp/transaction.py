"""One mail transaction: what MAIL and RCPT said, and where the content goes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from mailserverd.core.types import Envelope
from protocols.smtp import ext, replies
from protocols.smtp.wire.command import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from mailserverd.core.types import Recipient
    from mailserverd.services.receive import Receipt
    from protocols.smtp.conn import Content
    from protocols.smtp.extension import MailParameters, RcptParameters
    from protocols.smtp.wire.reply import Reply

    P = TypeVar("P")

EXCESS = 2  # times the largest message: a client that sends more is cut off


class Incoming(Protocol):
    """Where a message goes: ``services.receive`` or ``services.submission``."""

    async def write(self, chunk: bytes) -> None:
        """Take octets."""

    async def finish(self) -> Receipt:
        """Store the message for good; MailError."""

    def abort(self) -> None:
        """Forget what was written."""


@dataclasses.dataclass(slots=True)
class Transaction:
    """From MAIL to the end of the data."""

    reverse_path: str
    parameters: MailParameters
    recipients: list[Recipient] = dataclasses.field(default_factory=list)
    incoming: Incoming | None = None
    deadline: float = 0.0  # loop time by which the data must have come
    size: int = 0
    problem: Reply | None = None  # the reply due at the end of the data

    def envelope(self) -> Envelope:
        """Return the envelope for the services."""
        said = self.parameters
        return Envelope(
            reverse_path=self.reverse_path,
            recipients=tuple(self.recipients),
            smtputf8=said.smtputf8,
            body=said.body,
            ret=said.ret,
            envid=said.envid,
        )

    async def write(self, content: Content) -> None:
        """Pass octets on while nothing is wrong with them."""
        self.size += len(content.data)
        limit = self.parameters.settings.max_message_size
        if self.problem is None and self.size > limit:
            self.fail(replies.TOO_LARGE)
        if self.problem is None and not content.clean:
            self.fail(replies.UNCLEAN)
        if self.problem is None and self.incoming is not None and content.data:
            await self.incoming.write(content.data)

    @property
    def excessive(self) -> bool:
        """True when the client sends far more than it may."""
        return self.size > EXCESS * self.parameters.settings.max_message_size

    def fail(self, reply: Reply) -> None:
        """Drop what came so far and remember the reply for the end of the data."""
        self.problem = reply
        self.abort()

    def abort(self) -> None:
        """Let go of the content."""
        if self.incoming is not None:
            self.incoming.abort()
            self.incoming = None


def read_mail_parameters(
    params: Mapping[str, str | None], target: MailParameters
) -> None:
    """Apply the parameters of MAIL FROM; CommandError."""
    _apply(ext.MAIL, params, target)


def read_rcpt_parameters(
    params: Mapping[str, str | None], target: RcptParameters
) -> None:
    """Apply the parameters of RCPT TO; CommandError."""
    _apply(ext.RCPT, params, target)


def _apply(
    parsers: Mapping[str, Callable[[P, str | None], None]],
    params: Mapping[str, str | None],
    target: P,
) -> None:
    for name, value in params.items():
        parse = parsers.get(name)
        if parse is None:
            raise CommandError(555, "5.5.4", f"Parameter {name} is not supported")
        parse(target, value)
