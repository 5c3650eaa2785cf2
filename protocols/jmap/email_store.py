"""What creating and importing emails share: mailboxes, flags, and the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocols.jmap.wire import ids
from protocols.jmap.wire.errors import SetError, invalid_properties
from storage.model import SYSTEM_KEYWORDS, Flags

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailserverd.core.types import Access
    from protocols.jmap.method import Context
    from storage.model import Added


async def mailbox_numbers(
    context: Context, access: Access, texts: Iterable[str]
) -> dict[str, int]:
    """Return mailbox id -> number for those that exist."""
    listed = await context.services.mailboxes.list(access)
    existing = {box.mailbox_id for box in listed.mailboxes}
    found: dict[str, int] = {}
    for text in texts:
        number = ids.parse_mailbox(context.real(text))
        if number in existing:
            found[text] = number
    return found


async def targets(
    context: Context, access: Access, texts: tuple[str, ...]
) -> tuple[int, ...]:
    """Return the numbers of mailboxes; ``invalidProperties`` unless all exist."""
    found = await mailbox_numbers(context, access, texts)
    if len(found) != len(texts) or not texts:
        raise invalid_properties(["mailboxIds"], "no such mailbox")
    return tuple(dict.fromkeys(found.values()))


def flags(context: Context, keywords: tuple[str, ...]) -> Flags:
    """Return keywords as they are stored; ``tooManyKeywords``."""
    if len(keywords) > context.limits.max_keywords:
        raise SetError("tooManyKeywords")
    system = sum(SYSTEM_KEYWORDS.get(word, 0) for word in keywords)
    others = sorted(word for word in keywords if word not in SYSTEM_KEYWORDS)
    return Flags(system, tuple(others))


def created(added: Added, digest: bytes, size: int) -> dict[str, Any]:
    """Return what the server set on a new email."""
    return {
        "id": ids.email(added.email_id),
        "blobId": ids.blob(digest),
        "threadId": ids.thread(added.thread_id),
        "size": size,
    }
