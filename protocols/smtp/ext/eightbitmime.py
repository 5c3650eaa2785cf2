"""8BITMIME: octets above 127 are kept as they are (RFC 6152)."""

from __future__ import annotations

from mailserverd.core.types import BodyType
from protocols.smtp.extension import Extension, MailParameters
from protocols.smtp.wire.command import CommandError

_TYPES = {body.value: body for body in BodyType}


def _parse(mail: MailParameters, value: str | None) -> None:
    body = _TYPES.get((value or "").upper())
    if body is None:  # BINARYMIME too: it is not offered
        raise CommandError(501, "5.5.4", "BODY is 7BIT or 8BITMIME")
    mail.body = body


EXTENSION = Extension("8BITMIME", mail={"BODY": _parse})
