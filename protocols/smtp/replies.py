"""The replies we give: error kinds mapped once, and the constant ones.

Basic codes are RFC 5321 section 4.2.3, enhanced ones RFC 3463 and RFC 5248.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind
from protocols.smtp.wire.reply import Reply

if TYPE_CHECKING:
    from mailserverd.core.errors import MailError

BY_KIND: dict[Kind, tuple[int, str]] = {
    Kind.NOT_FOUND: (550, "5.1.1"),
    Kind.ALREADY_EXISTS: (554, "5.3.0"),
    Kind.INVALID: (554, "5.6.0"),
    Kind.TOO_LARGE: (552, "5.3.4"),
    Kind.OVER_QUOTA: (552, "5.2.2"),
    Kind.LIMIT: (452, "4.5.3"),
    Kind.RATE_LIMITED: (451, "4.7.1"),
    Kind.AUTH_FAILED: (535, "5.7.8"),
    Kind.AUTH_REQUIRED: (530, "5.7.0"),
    Kind.TLS_REQUIRED: (530, "5.7.0"),
    Kind.FORBIDDEN: (550, "5.7.1"),
    Kind.SENDER_REFUSED: (553, "5.7.1"),
    Kind.NO_SUCH_USER: (550, "5.1.1"),
    Kind.RELAY_DENIED: (550, "5.7.1"),
    Kind.POLICY: (550, "5.7.1"),
    Kind.TEMPORARY_POLICY: (451, "4.7.1"),
    Kind.MAIL_LOOP: (554, "5.4.6"),
    Kind.HAS_CHILDREN: (554, "5.3.0"),
    Kind.NOT_EMPTY: (554, "5.3.0"),
    Kind.STATE_MISMATCH: (554, "5.3.0"),
    Kind.CANNOT_CALCULATE_CHANGES: (554, "5.3.0"),
    Kind.ANCHOR_NOT_FOUND: (554, "5.3.0"),
    Kind.CONFLICT: (554, "5.3.0"),
    Kind.UNAVAILABLE: (451, "4.3.0"),
    Kind.STORAGE_FULL: (452, "4.3.1"),
    Kind.UNSUPPORTED: (554, "5.3.3"),
    Kind.INTERNAL: (451, "4.3.0"),
}


def refusal(error: MailError) -> Reply:
    """Return the reply that a refusal deserves."""
    code, enhanced = BY_KIND[error.kind]
    return Reply(code, enhanced, error.text[:1].upper() + error.text[1:])


OK = Reply(250, "2.0.0", "OK")
SENDER_OK = Reply(250, "2.1.0", "Sender OK")
RECIPIENT_OK = Reply(250, "2.1.5", "Recipient OK")
START_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
START_TLS = Reply(220, "2.0.0", "Ready to start TLS")
BYE = Reply(221, "2.0.0", "Bye")
CANNOT_VRFY = Reply(252, "2.0.0", "Cannot VRFY, but will accept and try to deliver")
HELP = Reply(
    214, "2.0.0", "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP STARTTLS AUTH QUIT"
)
UNKNOWN = Reply(500, "5.5.1", "Command not recognized")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Command not implemented")
NO_ARGUMENT = Reply(501, "5.5.4", "This command takes no argument")
LINE_TOO_LONG = Reply(500, "5.5.2", "Line too long")
BARE_LINE_END = Reply(500, "5.5.2", "Lines must end with CR LF")
UNCLEAN = Reply(554, "5.6.0", "Message contains a bare CR, a bare LF or a NUL")
TOO_LARGE = Reply(552, "5.3.4", "Message exceeds the fixed maximum size")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, closing connection")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "Too many commands, closing connection")
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Too many connections")
TIMED_OUT = Reply(421, "4.4.2", "Timed out, closing connection")
ENDLESS_LINE = Reply(421, "4.7.0", "Line without an end, closing connection")
SHUTTING_DOWN = Reply(421, "4.3.2", "Service shutting down, closing connection")
INTERNAL_ERROR = Reply(421, "4.3.0", "Internal error, closing connection")
NEEDS_UTF8 = Reply(553, "5.6.7", "Address needs SMTPUTF8")
TLS_UNAVAILABLE = Reply(454, "4.7.0", "TLS not available")
TLS_ACTIVE = Reply(503, "5.5.1", "TLS already active")
TLS_FIRST = Reply(538, "5.7.11", "Encryption required: issue STARTTLS first")
STARTTLS_FIRST = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
AUTH_UNAVAILABLE = Reply(502, "5.5.1", "AUTH not available here")
AUTH_FIRST = Reply(530, "5.7.0", "Authentication required")
AUTH_DONE = Reply(235, "2.7.0", "Authentication successful")
AUTH_ACTIVE = Reply(503, "5.5.1", "Already authenticated")
AUTH_ABORTED = Reply(501, "5.7.0", "Authentication aborted")
AUTH_MECHANISM = Reply(504, "5.5.4", "Unknown authentication mechanism")
AUTH_SYNTAX = Reply(501, "5.5.2", "Malformed authentication exchange")
AUTH_TOO_LONG = Reply(500, "5.5.6", "Authentication exchange line is too long")
CREDENTIALS_CHANGED = Reply(421, "4.7.0", "Credentials changed, log in again")
