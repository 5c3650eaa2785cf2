"""STARTTLS: offered while there is no TLS yet (RFC 3207)."""

from __future__ import annotations

from protocols.smtp.extension import Extension, Offer


def _advertise(offer: Offer) -> str | None:
    return "" if offer.tls_available and not offer.tls else None


EXTENSION = Extension("STARTTLS", _advertise)
