"""SASL LOGIN (draft-murchison-sasl-login): user, then password, each asked for.

Obsolete, but all that some clients speak.  Clients do not read the challenges'
text; these are the words that most servers send.
"""

from __future__ import annotations

from auth.people.sasl.exchange import (
    MAX_RESPONSE,
    Challenge,
    Credentials,
    Done,
    SaslError,
    identity,
)

ASK_USER, ASK_PASSWORD = Challenge(b"Username:"), Challenge(b"Password:")


class Login:
    """Two responses; the first may come as the initial one."""

    def __init__(self) -> None:
        self._user = ""

    def step(self, data: bytes | None) -> Challenge | Done:
        """Ask for the user name, then the password; then return both."""
        if data is None:
            return ASK_USER
        if len(data) > MAX_RESPONSE:
            raise SaslError("response too long")
        if not data or b"\0" in data:
            raise SaslError("empty response, or NUL in it")
        if not self._user:
            self._user = identity(data)
            return ASK_PASSWORD
        return Done(Credentials("", self._user, data))
