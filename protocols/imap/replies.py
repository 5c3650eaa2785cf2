"""Refusals: error kinds to response codes, mapped once (RFC 9051 section 7.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind
from protocols.imap.wire import encode

if TYPE_CHECKING:
    from mailserverd.core.errors import MailError

CODES: dict[Kind, str] = {
    Kind.NOT_FOUND: "NONEXISTENT",
    Kind.ALREADY_EXISTS: "ALREADYEXISTS",
    Kind.INVALID: "CANNOT",
    Kind.TOO_LARGE: "TOOBIG",
    Kind.OVER_QUOTA: "OVERQUOTA",
    Kind.LIMIT: "LIMIT",
    Kind.RATE_LIMITED: "UNAVAILABLE",
    Kind.AUTH_FAILED: "AUTHENTICATIONFAILED",
    Kind.AUTH_REQUIRED: "NOPERM",
    Kind.TLS_REQUIRED: "PRIVACYREQUIRED",
    Kind.FORBIDDEN: "NOPERM",
    Kind.SENDER_REFUSED: "CANNOT",
    Kind.NO_SUCH_USER: "CANNOT",
    Kind.RELAY_DENIED: "NOPERM",
    Kind.POLICY: "CANNOT",
    Kind.TEMPORARY_POLICY: "UNAVAILABLE",
    Kind.MAIL_LOOP: "CANNOT",
    Kind.HAS_CHILDREN: "HASCHILDREN",
    Kind.NOT_EMPTY: "CANNOT",
    Kind.STATE_MISMATCH: "INUSE",
    Kind.CANNOT_CALCULATE_CHANGES: "CANNOT",
    Kind.ANCHOR_NOT_FOUND: "NONEXISTENT",
    Kind.CONFLICT: "INUSE",
    Kind.UNAVAILABLE: "UNAVAILABLE",
    Kind.STORAGE_FULL: "UNAVAILABLE",
    Kind.UNSUPPORTED: "CANNOT",
    Kind.INTERNAL: "SERVERBUG",
}
"""Response code per error kind (RFC 5530, RFC 9051 section 7.1)."""


class Refused(Exception):
    """A command is answered NO with a response code of its own."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def reply(self) -> bytes:
        """Return what stands behind the tag."""
        return no(self.code, self.text)


def no(code: str, text: str) -> bytes:
    """Return ``NO [CODE] text``."""
    return b"NO [%b] %b" % (code.encode("ascii"), encode.text(text))


def refusal(error: MailError) -> bytes:
    """Return the tagged answer to an error of a service, without the tag."""
    text = Kind.INTERNAL.value if error.kind is Kind.INTERNAL else error.text
    return no(CODES[error.kind], text)
