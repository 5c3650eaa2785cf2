"""Adding one message to several accounts of a shard in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from storage.metadata.deliver import add_email

if TYPE_CHECKING:
    from storage.api import Tx
    from storage.model import Added, AddEmail


def add_emails(
    tx: Tx, _account: int, args: tuple[tuple[int, AddEmail], ...]
) -> tuple[tuple[int, Added], ...]:
    """Add a message to each (account, what); returns (account, where it is).

    Rows are taken in order of account.  An account that was removed meanwhile is
    left out.  Anything else that fails undoes the whole.
    """
    done: list[tuple[int, Added]] = []
    for account, add in sorted(args, key=lambda part: part[0]):
        try:
            done.append((account, add_email(tx, account, add)))
        except MailError as error:  # raised before anything was written
            if error.kind is not Kind.NOT_FOUND:
                raise
    return tuple(done)
