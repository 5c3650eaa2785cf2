"""Core/echo (RFC 8620 section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap.method import Method
from protocols.jmap.services import CORE

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context


async def run(_context: Context, args: Arguments) -> Arguments:
    """Return the arguments as they came."""
    return args


METHOD = Method("Core/echo", CORE, run, None)
