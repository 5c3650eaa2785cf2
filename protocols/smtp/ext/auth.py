"""AUTH: the mechanisms that may be used now, and AUTH= of MAIL FROM (RFC 4954)."""

from __future__ import annotations

from protocols.smtp.extension import Extension, MailParameters, Offer
from protocols.smtp.wire.command import CommandError, decode_xtext


def _advertise(offer: Offer) -> str | None:
    return " ".join(offer.mechanisms) or None


def _parse(_: MailParameters, value: str | None) -> None:
    """Accept and ignore: no client is trusted to vouch (RFC 4954 section 5)."""
    try:
        decode_xtext(value or "")
    except ValueError:
        raise CommandError(501, "5.5.4", "AUTH is not xtext") from None


EXTENSION = Extension("AUTH", _advertise, mail={"AUTH": _parse})
