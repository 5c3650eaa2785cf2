"""IMAP extensions: one file each, one line here."""

from __future__ import annotations

from protocols.imap.ext import (
    appendlimit,
    condstore,
    id,
    literal,
    objectid,
    preview,
    quota,
    savedate,
    within,
)

EXTENSIONS = (
    literal.EXTENSION,
    id.EXTENSION,
    condstore.EXTENSION,
    quota.EXTENSION,
    objectid.EXTENSION,
    savedate.EXTENSION,
    within.EXTENSION,
    preview.EXTENSION,
    appendlimit.EXTENSION,
)
"""Everything beyond the base protocol, in the order of CAPABILITY."""
