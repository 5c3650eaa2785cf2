"""SASL mechanisms: one sans-IO file each, one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auth.people.sasl.exchange import Challenge, Credentials, Done, SaslError
from auth.people.sasl.login import Login
from auth.people.sasl.plain import Plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from auth.people.sasl.exchange import Exchange

__all__ = ["MECHANISMS", "Challenge", "Credentials", "Done", "SaslError", "start"]

_EXCHANGES: dict[str, Callable[[], Exchange]] = {
    "PLAIN": Plain,
    "LOGIN": Login,
}
MECHANISMS = tuple(_EXCHANGES)
"""Names as they are advertised, best first."""


def start(mechanism: str) -> Exchange | None:
    """Return a new exchange by a mechanism's name in any case; None: not ours."""
    make = _EXCHANGES.get(mechanism.upper())
    return None if make is None else make()
