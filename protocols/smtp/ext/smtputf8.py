"""SMTPUTF8: addresses and headers in UTF-8, where the client asks (RFC 6531)."""

from __future__ import annotations

from protocols.smtp.extension import Extension, MailParameters
from protocols.smtp.wire.command import CommandError


def _parse(mail: MailParameters, value: str | None) -> None:
    if value is not None:
        raise CommandError(501, "5.5.4", "SMTPUTF8 takes no value")
    mail.smtputf8 = True


EXTENSION = Extension("SMTPUTF8", mail={"SMTPUTF8": _parse})
