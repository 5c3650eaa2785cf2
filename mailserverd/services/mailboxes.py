"""Mailboxes: list, create, rename, subscribe, destroy (RFC 9051, RFC 8621)."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from mailserverd.core.types import system
from mailserverd.services.access import check, since_when
from storage.metadata import accounts, changes, copies, mailboxes

if TYPE_CHECKING:
    from mailserverd.core.types import Access
    from mailserverd.services.changes import Changes
    from storage.api import MetadataStore
    from storage.model import (
        AccountState,
        Mailbox,
        MailboxList,
        MailboxPatch,
        NewMailbox,
        ObjectChanges,
        Since,
    )

CACHED = 20_000  # mailboxes of all accounts together: about 15 MB
FEW = 150  # mailboxes listed on the loop
SOME = 1000  # of which the changed ones are read on the loop
EMPTY_AT_ONCE = 2000  # messages removed by one unit before their mailbox goes


class Mailboxes:
    """The mailboxes of accounts; every call checks the access first."""

    def __init__(self, store: MetadataStore, changes: Changes) -> None:
        self._store = store
        self._changes = changes
        self._lists: collections.OrderedDict[int, MailboxList] = (
            collections.OrderedDict()
        )
        self._cached = 0  # mailboxes in them

    async def state(self, access: Access) -> AccountState:
        """Return the account's change counters and quota."""
        check(access)
        return await self._store.read(access, accounts.state, None)

    async def list(self, access: Access) -> MailboxList:
        """Return all mailboxes in path order, at one modseq.

        Cached per account, and true at the moment of the call: the account's
        change counter is compared each time.
        """
        check(access)
        known = self._lists.get(access.account)
        fresh = await self._fresh(access, known)
        if fresh is not known:
            self._remember(access.account, fresh)
        elif access.account in self._lists:
            self._lists.move_to_end(access.account)
        return fresh

    async def _fresh(self, access: Access, known: MailboxList | None) -> MailboxList:
        fresh: MailboxList | None = None
        if known is not None and len(known.mailboxes) > SOME:
            state = await self._store.read(access, accounts.state, None)
            if known.state == state:
                return known
        elif known is not None:
            fresh = await self._store.read(access, mailboxes.list_again, known)
        if fresh is None:
            fresh = await self._store.read(access, mailboxes.list_few, FEW)
        if fresh is None:
            fresh = await self._store.read(access, mailboxes.list_all, None)
        return fresh

    def _remember(self, account: int, fresh: MailboxList) -> None:
        old = self._lists.pop(account, None)
        self._cached += len(fresh.mailboxes) - (len(old.mailboxes) if old else 0)
        self._lists[account] = fresh
        while self._cached > CACHED and len(self._lists) > 1:
            _, gone = self._lists.popitem(last=False)
            self._cached -= len(gone.mailboxes)

    async def create(self, access: Access, new: NewMailbox) -> Mailbox:
        """Create a mailbox: ALREADY_EXISTS, NOT_FOUND (parent), INVALID, LIMIT."""
        check(access)
        made, modseq = await self._store.write(access, mailboxes.create, new)
        self._changes.announce(access.account, modseq)
        return made

    async def create_path(self, access: Access, path: str, role: str = "") -> Mailbox:
        """IMAP CREATE (RFC 9051 section 6.3.4): missing parents are made too.

        ALREADY_EXISTS, INVALID (name, role), LIMIT.
        """
        check(access)
        made, modseq = await self._store.write(
            access, mailboxes.create_path, (path, role)
        )
        self._changes.announce(access.account, modseq)
        return made

    async def update(self, access: Access, patch: MailboxPatch) -> Mailbox:
        """Rename, move, give a role or an order, subscribe.

        NOT_FOUND, ALREADY_EXISTS, INVALID (name, loop, role), FORBIDDEN (INBOX).
        """
        check(access)
        box, modseq, changed = await self._store.write(access, mailboxes.change, patch)
        if changed:
            self._changes.announce(access.account, modseq)
        return box

    async def rename_path(self, access: Access, old: str, new: str) -> Mailbox:
        """IMAP RENAME (RFC 9051 section 6.3.6); INBOX stays, its messages move.

        NOT_FOUND, ALREADY_EXISTS, INVALID, LIMIT.
        """
        check(access)
        box, modseq = await self._store.write(access, copies.rename_path, (old, new))
        self._changes.announce(access.account, modseq)
        return box

    async def subscribe(self, access: Access, path: str, on: bool) -> None:
        """Subscribe to a name or no longer, whether a mailbox has it or not."""
        check(access)
        modseq, changed = await self._store.write(
            access, mailboxes.subscribe, (path, on)
        )
        if changed:
            self._changes.announce(access.account, modseq)

    async def subscriptions(self, access: Access) -> tuple[str, ...]:
        """Return subscribed paths in order, of mailboxes that exist or not."""
        check(access)
        return await self._store.read(access, mailboxes.subscriptions, None)

    async def destroy(
        self, access: Access, mailbox_id: int, *, remove_emails: bool
    ) -> None:
        """Destroy a mailbox; emails that lie elsewhere too stay there.

        NOT_FOUND, FORBIDDEN (INBOX), HAS_CHILDREN, and NOT_EMPTY when it shows
        emails and ``remove_emails`` is false.
        """
        check(access)
        removed = EMPTY_AT_ONCE if remove_emails else 0
        while removed == EMPTY_AT_ONCE:
            removed, _ = await self._store.write(
                access, copies.empty_some, (mailbox_id, EMPTY_AT_ONCE)
            )
        modseq = await self._store.write(
            access, copies.destroy_mailbox, (mailbox_id, remove_emails)
        )
        self._changes.announce(access.account, modseq)

    async def changes(
        self, access: Access, since: int | Since, limit: int | None = None
    ) -> ObjectChanges:
        """Mailbox/changes (RFC 8621 section 2.2): CANNOT_CALCULATE_CHANGES.

        ``since`` is a modseq, or a ``Since`` when a modseq may be split.
        """
        check(access)
        return await self._store.read(
            access, changes.mailboxes, since_when(since, limit)
        )

    async def set_quota(self, account: int, octets: int) -> None:
        """Set an account's quota in octets; 0 is unlimited.  NOT_FOUND."""
        await self._store.write(system(account), accounts.set_quota, octets)
