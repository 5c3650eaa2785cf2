"""DSN: who wants to hear of success, failure and delay (RFC 3461)."""

from __future__ import annotations

import re

from protocols.smtp.extension import Extension, MailParameters, RcptParameters
from protocols.smtp.wire.command import CommandError, decode_xtext

MAX_ENVID = 100  # RFC 3461 section 5.4
MAX_ORCPT = 500  # RFC 3461 section 5.4
_CONDITIONS = frozenset({"SUCCESS", "FAILURE", "DELAY"})
# RFC 6533 section 3: utf-8 addresses hold UTF-8 or \x{...} in place of xtext.
_ORCPT = re.compile("[A-Za-z0-9-]{1,32};[!-~\u00a0-\U0010ffff]+")


def _ret(mail: MailParameters, value: str | None) -> None:
    mail.ret = (value or "").upper()
    if mail.ret not in {"FULL", "HDRS"}:
        raise CommandError(501, "5.5.4", "RET is FULL or HDRS")


def _envid(mail: MailParameters, value: str | None) -> None:
    mail.envid = value or ""
    _check_xtext("ENVID", mail.envid, MAX_ENVID)


def _notify(rcpt: RcptParameters, value: str | None) -> None:
    words = tuple((value or "").upper().split(","))
    if words != ("NEVER",) and not _CONDITIONS.issuperset(words):
        raise CommandError(501, "5.5.4", "NOTIFY is NEVER or SUCCESS,FAILURE,DELAY")
    rcpt.notify = tuple(dict.fromkeys(words))


def _orcpt(rcpt: RcptParameters, value: str | None) -> None:
    kind, _, address = (value or "").partition(";")
    if not _ORCPT.fullmatch(value or ""):
        raise CommandError(501, "5.5.4", "Syntax: ORCPT=type;address")
    if kind.lower() == "utf-8":
        if len(address) > MAX_ORCPT:
            raise CommandError(501, "5.5.4", "ORCPT too long")
    else:
        _check_xtext("ORCPT", address, MAX_ORCPT)
    rcpt.orcpt = value or ""


def _check_xtext(name: str, value: str, limit: int) -> None:
    try:
        printable = decode_xtext(value).isprintable()
    except ValueError:
        printable = False
    if not value or not printable or len(value) > limit:
        raise CommandError(501, "5.5.4", f"{name} is not xtext, or too long")


EXTENSION = Extension(
    "DSN",
    mail={"RET": _ret, "ENVID": _envid},
    rcpt={"NOTIFY": _notify, "ORCPT": _orcpt},
)
