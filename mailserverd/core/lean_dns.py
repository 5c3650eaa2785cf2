"""Keeps dnspython from loading an HTTP client for DNS over HTTPS, which is not used.

That client comes with checkdmarc's dependencies and costs 4 MB per process.  Packages
that use dnspython call this in their ``__init__``, before dnspython is imported.
"""

from __future__ import annotations

import dns._features


def without_doh() -> None:
    """Tell dnspython that it has no HTTP client; too late is harmless."""
    force = getattr(dns._features, "force", None)  # private: may go away
    if force is not None:
        force("doh", False)
