"""Modes that change what other commands say: together with ``view`` the one place.

CONDSTORE and QRESYNC (RFC 7162), IMAP4rev2 (RFC 9051), each switched on by ENABLE
(RFC 5161) or by the commands that imply it, and on until the connection ends.
"""

from __future__ import annotations

import dataclasses

from protocols.imap.view import Form


@dataclasses.dataclass(slots=True)
class Modes:
    """What this connection has enabled."""

    rev2: bool = False
    condstore: bool = False
    qresync: bool = False

    def enable(self, capability: str) -> bool:
        """Enable by capability name (upper case); False when it was on or unknown."""
        if capability == "IMAP4REV2":
            changed, self.rev2 = not self.rev2, True
        elif capability == "CONDSTORE":
            changed, self.condstore = not self.condstore, True
        elif capability == "QRESYNC":  # RFC 7162 section 3.2.3: implies CONDSTORE
            changed, self.qresync = not self.qresync, True
            self.condstore = True
        else:
            return False
        return changed

    @property
    def utf8(self) -> bool:
        """Mailbox names travel in UTF-8 (RFC 9051 section 5.1)."""
        return self.rev2

    @property
    def form(self) -> Form:
        """How the selected mailbox's news are told."""
        form = Form.PLAIN
        if self.rev2 or self.qresync:
            form |= Form.UID
        if self.condstore:
            form |= Form.MODSEQ
        if self.qresync:
            form |= Form.VANISHED
        return form
