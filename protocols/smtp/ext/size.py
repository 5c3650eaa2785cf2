"""SIZE: the limit announced, the declared size refused early (RFC 1870)."""

from __future__ import annotations

import re

from protocols.smtp.extension import Extension, MailParameters, Offer
from protocols.smtp.wire.command import CommandError

_SIZE = re.compile(r"[0-9]{1,20}")


def _advertise(offer: Offer) -> str:
    return str(offer.settings.max_message_size)


def _parse(mail: MailParameters, value: str | None) -> None:
    if value is None or not _SIZE.fullmatch(value):
        raise CommandError(501, "5.5.4", "Syntax: SIZE=octets")
    mail.size = int(value)
    if mail.size > mail.settings.max_message_size:
        raise CommandError(552, "5.3.4", "Message exceeds the fixed maximum size")


EXTENSION = Extension("SIZE", _advertise, mail={"SIZE": _parse})
