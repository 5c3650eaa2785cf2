"""ENABLE (RFC 9051 section 6.3.1, RFC 5161)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.imap.conn import AUTHENTICATED
from protocols.imap.extension import Command, Context

if TYPE_CHECKING:
    from protocols.imap.wire.cursor import Cursor


async def _run(context: Context, args: Cursor) -> None:
    asked = []
    args.space()
    asked.append(args.atom().decode("ascii"))
    while args.take(b" "):
        asked.append(args.atom().decode("ascii"))
    args.end()
    known = {name.upper(): name for name in context.registry.enables}
    enabled = [
        known[name.upper()]
        for name in asked
        if name.upper() in known and _enable(context, name.upper())
    ]
    context.send(" ".join(["* ENABLED", *enabled]).encode("ascii") + b"\r\n")


def _enable(context: Context, name: str) -> bool:
    before = context.modes.condstore
    if name in {"CONDSTORE", "QRESYNC"}:  # the latter implies the former
        context.enable_condstore()
    if name == "CONDSTORE":
        return not before
    return context.modes.enable(name)


COMMAND = Command("ENABLE", AUTHENTICATED, _run)
