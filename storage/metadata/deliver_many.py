"""Adding one message to several accounts of a shard in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.metadata.deliver import add_email
from storage.metadata.sql import several

if TYPE_CHECKING:
    from storage.api import Tx
    from storage.model import Added, AddEmail


@several
def add_emails(
    tx: Tx, _account: int, args: tuple[tuple[int, AddEmail], ...]
) -> tuple[tuple[int, Added], ...]:
    """Add a message to each (account, what); returns (account, where it is).

    Rows are taken in order of account.  Whatever fails undoes the whole: NOT_FOUND
    for an account, or a mailbox, that is not there.
    """
    ordered = sorted(args, key=lambda part: part[0])
    return tuple((account, add_email(tx, account, add)) for account, add in ordered)
