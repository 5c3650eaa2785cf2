"""Blob/copy (RFC 8620 section 6.3), where nobody has a second account."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap.method import ACCOUNT, Method
from protocols.jmap.services import CORE
from protocols.jmap.wire.arguments import Argument, identifier, list_of
from protocols.jmap.wire.errors import invalid_arguments

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context

TAKES = {
    "fromAccountId": ACCOUNT,
    "accountId": ACCOUNT,
    "blobIds": Argument(list_of(identifier)),
}


async def run(context: Context, args: Arguments) -> Arguments:
    """Refuse: ``accountNotFound``, ``fromAccountNotFound``, ``invalidArguments``."""
    context.access(args["accountId"])
    context.access(args["fromAccountId"], "fromAccountNotFound")
    raise invalid_arguments("fromAccountId and accountId must be different")


METHOD = Method("Blob/copy", CORE, run, TAKES)
