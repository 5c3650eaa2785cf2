"""The sending side, sans IO: octets in, answered commands out.

``ClientConnection`` keeps which commands wait for a reply; ``mail_command`` and
``rcpt_command`` say what the peer's extensions allow to be said.  The conversation
itself (``delivery``) decides what to send when.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from mailserverd.core.types import BodyType
from mailserverd.mail.dsn import decode_orcpt, encode_orcpt
from protocols.smtp.wire.reply import Reply, ReplyError, ReplyReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mailserverd.core.types import Envelope, Recipient

MAX_FEATURES = 100
GREETING, EHLO, HELO, STARTTLS = "greeting", "EHLO", "HELO", "STARTTLS"
MAIL, RCPT, DATA, END = "MAIL", "RCPT", "DATA", "end of data"
RSET, QUIT = "RSET", "QUIT"
SERVICE_READY = 220
START_INPUT = 354
CLOSING = 421


class Answer(NamedTuple):
    """A reply and the command that it answers; "" when nothing was asked."""

    command: str
    reply: Reply


@dataclasses.dataclass(frozen=True, slots=True)
class Features:
    """What EHLO's answer offered (RFC 5321 section 4.1.1.1)."""

    keywords: dict[str, str]  # in upper case, with their parameters

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def max_size(self) -> int:
        """The announced limit in octets; 0 when there is none (RFC 1870)."""
        value = self.keywords.get("SIZE", "")
        return int(value) if value.isascii() and value.isdigit() else 0


NO_FEATURES = Features({})


class ClientConnection:
    """One connection to a server, as its client sees it."""

    def __init__(self) -> None:
        self._reader = ReplyReader()
        self._waiting: collections.deque[str] = collections.deque([GREETING])
        self.features = NO_FEATURES
        self.closing = False  # the server said 421: nothing more may be sent

    def command(self, name: str, line: str) -> bytes:
        """Return the octets of a command and remember that it will be answered."""
        self._waiting.append(name)
        return line.encode() + b"\r\n"

    def commands(self, lines: Iterable[tuple[str, str]]) -> bytes:
        """Return a pipelined group (RFC 2920)."""
        return b"".join(self.command(name, line) for name, line in lines)

    def receive(self, data: bytes) -> list[Answer]:
        """Take octets; ReplyError when they are not SMTP, or answer nothing."""
        return [self._answer(reply) for reply in self._reader.feed(data)]

    def _answer(self, reply: Reply) -> Answer:
        if reply.code == CLOSING:
            self.closing = True
        if not self._waiting:
            if not self.closing:
                raise ReplyError("a reply to nothing")
            return Answer("", reply)
        command = self._waiting.popleft()
        if command == EHLO and reply.positive:
            self.features = parse_features(reply)
        elif command == HELO:
            self.features = NO_FEATURES
        elif command == DATA and reply.code == START_INPUT:
            self._waiting.append(END)  # whose answer may come before we are done
        return Answer(command, reply)

    def start_tls(self) -> None:
        """Begin anew inside TLS; ReplyError when plain octets came after the 220.

        Somebody between could have put them there (RFC 3207 section 4.2).
        """
        if self._reader.pending or self._waiting:
            raise ReplyError("plain text after STARTTLS")
        self.features = NO_FEATURES


def parse_features(reply: Reply) -> Features:
    """Read EHLO's answer; the first line is the server's name."""
    found: dict[str, str] = {}
    for line in reply.text.split("\n")[1:MAX_FEATURES]:
        keyword, _, parameters = line.strip().partition(" ")
        if keyword:
            found[keyword.upper()] = parameters.strip()
    return Features(found)


def mail_command(
    envelope: Envelope, features: Features, *, size: int, eight_bit: bool
) -> str:
    """Return MAIL FROM with the parameters that the server understands."""
    words = [f"MAIL FROM:<{envelope.reverse_path}>"]
    if "SIZE" in features:
        words.append(f"SIZE={size}")
    if "8BITMIME" in features and eight_bit:
        words.append(f"BODY={BodyType.EIGHT_BIT.value}")
    if envelope.smtputf8:
        words.append("SMTPUTF8")
    if "DSN" in features:
        if envelope.ret:
            words.append(f"RET={envelope.ret}")
        if envelope.envid:
            words.append(f"ENVID={envelope.envid}")
    return " ".join(words)


def rcpt_command(recipient: Recipient, features: Features) -> str:
    """Return RCPT TO with the parameters that the server understands."""
    words = [f"RCPT TO:<{recipient.address}>"]
    if "DSN" in features:
        if recipient.notify:
            words.append(f"NOTIFY={','.join(recipient.notify)}")
        if recipient.orcpt:
            words.append(f"ORCPT={_orcpt(recipient.orcpt, features)}")
    return " ".join(words)


def _orcpt(value: str, features: Features) -> str:
    """Write UTF-8 in ASCII where the server does not know it (RFC 6533 section 3)."""
    if value.isascii() or "SMTPUTF8" in features:
        return value
    kind, _, address = value.partition(";")
    return f"{kind};{encode_orcpt(kind, decode_orcpt(kind, address))}"


def obstacle(
    envelope: Envelope, features: Features, *, size: int, eight_bit: bool
) -> Reply | None:
    """Return why this server cannot take the message, as if it had said so."""
    if envelope.smtputf8 and not {"SMTPUTF8", "8BITMIME"} <= features.keywords.keys():
        return Reply(553, "5.6.7", "Server does not support SMTPUTF8")
    if eight_bit and "8BITMIME" not in features:
        return Reply(554, "5.6.3", "Server does not support 8BITMIME")
    if features.max_size and size > features.max_size:
        return Reply(552, "5.3.4", f"Server takes at most {features.max_size} octets")
    return None


def transaction_lines(
    envelope: Envelope,
    recipients: Sequence[Recipient],
    features: Features,
    *,
    size: int,
    eight_bit: bool,
) -> list[tuple[str, str]]:
    """Return the commands of one transaction, DATA last."""
    mail = mail_command(envelope, features, size=size, eight_bit=eight_bit)
    return [
        (MAIL, mail),
        *((RCPT, rcpt_command(recipient, features)) for recipient in recipients),
        (DATA, "DATA"),
    ]
