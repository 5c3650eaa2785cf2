"""Loading a mailbox's view: on the loop when small, else in chunks off the loop."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from storage.metadata import messages
from storage.model import KEYWORD_SHIFT, View

if TYPE_CHECKING:
    from mailserverd.core.types import Access
    from storage.api import MetadataStore
    from storage.model import ViewDelta

FIRST = 250  # rows read on the loop
CHUNK = 5000


async def load_view(store: MetadataStore, access: Access, mailbox_id: int) -> View:
    """Return a mailbox as arrays, true at its ``highestmodseq``.  NOT_FOUND.

    Chunks are read one snapshot each; what changed meanwhile is mended at the end
    from the change log, so the view is of one moment.
    """
    head = await store.read(access, messages.view_head, (mailbox_id, FIRST))
    view = messages.make_view(mailbox_id, head)
    messages.extend_view(view, head)
    chunk, limit, torn = head, FIRST, False
    while len(chunk.uids) == limit:
        limit = CHUNK
        args = (mailbox_id, view.uids[-1], limit)
        chunk = await store.read(access, messages.view_chunk, args)
        messages.extend_view(view, chunk)
        torn = torn or chunk.highestmodseq != head.highestmodseq
    if torn:
        args_since = (mailbox_id, head.highestmodseq)
        delta = await store.read(access, messages.delta, args_since)
        if not delta.complete:
            return await load_view(store, access, mailbox_id)
        view = apply_delta(view, delta)
    return view


def apply_delta(view: View, delta: ViewDelta) -> View:
    """Return a view with changed rows replaced, new ones added, vanished ones out."""
    gone = set(delta.vanished)
    fresh = {row[0]: row for row in delta.changed}
    new = View(
        view.mailbox_id,
        view.uidvalidity,
        delta.uidnext,
        delta.highestmodseq,
        array("I"),
        array("Q"),
        array("Q"),
        array("I"),
        list(view.keyword_sets),
    )
    kept = [
        (uid, view.email_ids[i], view.modseqs[i], view.flags[i])
        for i, uid in enumerate(view.uids)
        if uid not in gone and uid not in fresh
    ]
    numbers = {words: i + 1 for i, words in enumerate(new.keyword_sets)}
    for uid, email_id, modseq, bits, words in fresh.values():
        number = 0
        if words:
            number = numbers.setdefault(words, len(numbers) + 1)
            if number > len(new.keyword_sets):
                new.keyword_sets.append(words)
        flags = bits | number << KEYWORD_SHIFT
        kept.append((uid, email_id, modseq, flags))
    for uid, email_id, modseq, flags in sorted(kept):
        new.uids.append(uid)
        new.email_ids.append(email_id)
        new.modseqs.append(modseq)
        new.flags.append(flags)
    return new
