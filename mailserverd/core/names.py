"""Domain names as they are compared, looked up and shown."""

from __future__ import annotations

import idna

MAX_NAME, MAX_LABEL = 253, 63  # octets without the final dot, RFC 1035 section 2.3.4


def a_labels(name: str) -> str | None:
    """Return the name as lower-case A-labels without final dot; None if it is none.

    Any ASCII octets may stand in labels (``_dmarc``): DNS names, not host names.
    """
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except (idna.IDNAError, UnicodeError):
            return None
    name = name.lower().removesuffix(".")
    if not 0 < len(name) <= MAX_NAME:
        return None
    if ".." in name or not all(0 < len(p) <= MAX_LABEL for p in name.split(".")):
        return None
    return name
