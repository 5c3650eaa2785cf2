"""APPENDLIMIT (RFC 7889): the largest message that APPEND takes, everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.extension import Extension

if TYPE_CHECKING:
    from protocols.imap.extension import Context


def _capability(context: Context) -> tuple[str, ...]:
    return (f"APPENDLIMIT={context.services.settings.max_message_size}",)


EXTENSION = Extension(dynamic=_capability)
