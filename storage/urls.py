"""What the URLs of engines may say: as far as it can be told without the engine."""

from __future__ import annotations

import urllib.parse

from mailserverd.core.urls import shown

OPTIONS = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "prepared": ("on", "off", ""),
}


def check_path(url: str) -> None:
    """ValueError when a URL names no file or directory."""
    if not url.partition("://")[2].strip("/"):
        scheme = url.partition(":")[0]
        raise ValueError(f"must name a path: {scheme}:///var/lib/...")


def check_sqlite(url: str) -> None:
    """The same; it has another slash before an absolute path."""
    if not url.partition("://")[2].strip("/"):
        raise ValueError("must name a file: sqlite:////var/lib/...")


def check_postgresql(url: str) -> None:
    """ValueError when an option cannot have its value; the driver knows the others."""
    query = urllib.parse.urlsplit(url).query
    for name, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        allowed = OPTIONS.get(name)
        if allowed and value not in allowed:
            known = ", ".join(filter(None, allowed))
            raise ValueError(f"{name}={shown(value)}: must be one of {known}")
