"""The shape of an SMTP extension: what it adds to EHLO, MAIL and RCPT."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mailserverd.core.types import BodyType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from protocols.smtp.settings import SmtpSettings


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """What EHLO's answer depends on."""

    settings: SmtpSettings
    tls: bool  # TLS is active
    tls_available: bool  # STARTTLS would work
    mechanisms: tuple[str, ...]  # of AUTH, as far as they may be used now


@dataclasses.dataclass(slots=True)
class MailParameters:
    """What the parameters of MAIL FROM said."""

    settings: SmtpSettings
    size: int = 0  # declared octets; 0 when not declared
    body: BodyType = BodyType.SEVEN_BIT
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""


@dataclasses.dataclass(slots=True)
class RcptParameters:
    """What the parameters of RCPT TO said."""

    notify: tuple[str, ...] = ()
    orcpt: str = ""


def always(_: Offer) -> str:
    """Advertise without parameters, to everyone."""
    return ""


@dataclasses.dataclass(frozen=True, slots=True)
class Extension:
    """One EHLO keyword.

    ``advertise`` returns the keyword's parameters ("" for none), or None where it is
    not offered.  The parsers of parameters raise CommandError.
    """

    keyword: str
    advertise: Callable[[Offer], str | None] = always
    mail: Mapping[str, Callable[[MailParameters, str | None], None]] = (
        dataclasses.field(default_factory=dict)
    )
    rcpt: Mapping[str, Callable[[RcptParameters, str | None], None]] = (
        dataclasses.field(default_factory=dict)
    )
