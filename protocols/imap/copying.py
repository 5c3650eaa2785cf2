"""What COPY and MOVE share (RFC 9051 sections 6.4.7 and 6.4.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from protocols.imap.replies import Refused
from protocols.imap.wire import sequence

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Callable, Sequence

    from mailserverd.core.types import Access
    from protocols.imap.extension import Context
    from protocols.imap.wire.cursor import Cursor
    from storage.model import CopyResult

    Transfer = Callable[[Access, int, Sequence[int], int], Awaitable[CopyResult]]


async def transfer(
    context: Context, args: Cursor, action: Transfer, *, uid: bool
) -> bytes | None:
    """Parse the set and the mailbox, copy or move, and return the COPYUID code.

    None when nothing was selected.  TRYCREATE when the mailbox does not exist,
    EXPUNGEISSUED when a numbered message is gone: then nothing is copied.
    """
    args.space()
    wanted = args.sequence_set()
    args.space()
    path = args.mailbox(utf8=context.modes.utf8)
    args.end()
    selected = context.mailbox
    ranges = selected.resolve(wanted, uid=uid)
    if not uid and selected.lost(ranges):
        raise Refused("EXPUNGEISSUED", "some of these messages are gone")
    target = await context.find(path, code="TRYCREATE")
    uids: array[int] = selected.uids_of(ranges)
    if not uids:
        return None
    source_id = selected.view.mailbox_id
    try:
        result = await action(context.access, source_id, uids, target.mailbox_id)
    except MailError as error:
        if error.kind is Kind.NOT_FOUND:
            raise Refused("TRYCREATE", "no such mailbox") from error
        raise
    if not result.source_uids:
        return None
    old, new = sequence.encode_pairs(result.source_uids, result.target_uids)
    return b"[COPYUID %d %b %b]" % (result.uidvalidity, old, new)
