"""Email/copy (RFC 8621 section 4.7), where nobody has a second account.

The arguments are checked in full; the account to copy from can only be one that
does not exist, or the one to copy to, which is not allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.jmap.method import ACCOUNT, Method
from protocols.jmap.services import MAIL
from protocols.jmap.wire.arguments import (
    Argument,
    boolean,
    map_of,
    mapping,
    nullable,
    string,
)
from protocols.jmap.wire.errors import invalid_arguments

if TYPE_CHECKING:
    from protocols.jmap.method import Arguments, Context

TAKES = {
    "fromAccountId": ACCOUNT,
    "ifFromInState": Argument(nullable(string), None),
    "accountId": ACCOUNT,
    "ifInState": Argument(nullable(string), None),
    "create": Argument(map_of(mapping)),
    "onSuccessDestroyOriginal": Argument(boolean, False),
    "destroyFromIfInState": Argument(nullable(string), None),
}


async def run(context: Context, args: Arguments) -> Arguments:
    """Refuse: ``accountNotFound``, ``fromAccountNotFound``, ``invalidArguments``."""
    context.access(args["accountId"])
    context.access(args["fromAccountId"], "fromAccountNotFound")
    raise invalid_arguments("fromAccountId and accountId must be different")


METHOD = Method("Email/copy", MAIL, run, TAKES)
