"""SASL PLAIN (RFC 4616): ``[authzid] NUL authcid NUL passwd`` in one response."""

from __future__ import annotations

from auth.people.sasl.exchange import (
    MAX_RESPONSE,
    Challenge,
    Credentials,
    Done,
    SaslError,
    identity,
)


class Plain:
    """One response carries everything."""

    def step(self, data: bytes | None) -> Challenge | Done:
        """Return the credentials, or ask for them with an empty challenge."""
        if data is None:
            return Challenge()
        if len(data) > MAX_RESPONSE:
            raise SaslError("response too long")
        fields = data.split(b"\0")
        if len(fields) != 3:
            raise SaslError("PLAIN needs authzid, user and password")
        authzid, user, password = fields
        if not user or not password:
            raise SaslError("empty user or password")
        return Done(Credentials(identity(authzid), identity(user), password))
