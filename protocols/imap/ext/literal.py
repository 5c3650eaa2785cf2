"""Non-synchronising literals (RFC 7888): small ones before login, any after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.extension import Extension

if TYPE_CHECKING:
    from protocols.imap.extension import Context


def _capability(context: Context) -> tuple[str, ...]:
    return ("LITERAL-",) if context.principal is None else ("LITERAL+",)


EXTENSION = Extension(dynamic=_capability)
