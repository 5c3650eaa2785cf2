"""Extensions that add no parameter: their keyword is all EHLO says of them.

PIPELINING (RFC 2920): the replies to a group leave in one write.
CHUNKING (RFC 3030): BDAT; BINARYMIME is not offered, since IMAP, POP3 and most next
hops could not pass such a message on.
ENHANCEDSTATUSCODES (RFC 2034): every reply but the greeting, EHLO's and 3xx has one.
HELP (RFC 5321 section 4.1.1.8).
"""

from __future__ import annotations

from protocols.smtp.extension import Extension

PIPELINING = Extension("PIPELINING")
CHUNKING = Extension("CHUNKING")
ENHANCEDSTATUSCODES = Extension("ENHANCEDSTATUSCODES")
HELP = Extension("HELP")
