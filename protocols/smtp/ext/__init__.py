"""The extensions offered, in the order of EHLO's answer: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.smtp.ext import (
    auth,
    dsn,
    eightbitmime,
    keywords,
    size,
    smtputf8,
    starttls,
)

if TYPE_CHECKING:
    from protocols.smtp.extension import Extension

EXTENSIONS: tuple[Extension, ...] = (
    keywords.PIPELINING,
    size.EXTENSION,
    eightbitmime.EXTENSION,
    smtputf8.EXTENSION,
    keywords.CHUNKING,
    dsn.EXTENSION,
    starttls.EXTENSION,
    auth.EXTENSION,
    keywords.ENHANCEDSTATUSCODES,
    keywords.HELP,
)
MAIL = {name: parse for e in EXTENSIONS for name, parse in e.mail.items()}
RCPT = {name: parse for e in EXTENSIONS for name, parse in e.rcpt.items()}
