"""Identities that a user may send as (RFC 8621 section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.services.access import check, since_when
from storage.metadata import changes, identities

if TYPE_CHECKING:
    from mailserverd.core.types import Access
    from mailserverd.services.changes import Changes
    from storage.api import MetadataStore
    from storage.model import AccountState, Identity, ObjectChanges, Since


class Identities:
    """The identities of accounts; whether an address may be used is asked elsewhere."""

    def __init__(self, store: MetadataStore, changes: Changes) -> None:
        self._store = store
        self._changes = changes

    async def list(self, access: Access) -> tuple[AccountState, tuple[Identity, ...]]:
        """Return the account's identities in order of their ids."""
        check(access)
        return await self._store.read(access, identities.list_all, None)

    async def create(self, access: Access, new: Identity) -> Identity:
        """Add an identity; its id and modseq are set.  LIMIT."""
        check(access)
        made = await self._store.write(access, identities.create, new)
        self._changes.announce(access.account, made.modseq)
        return made

    async def update(self, access: Access, new: Identity) -> Identity:
        """Replace what may change: all but the address.  NOT_FOUND."""
        check(access)
        made = await self._store.write(access, identities.change, new)
        self._changes.announce(access.account, made.modseq)
        return made

    async def destroy(self, access: Access, identity_id: int) -> None:
        """Remove an identity.  NOT_FOUND, FORBIDDEN (the account's own)."""
        check(access)
        modseq = await self._store.write(access, identities.destroy, identity_id)
        self._changes.announce(access.account, modseq)

    async def changes(
        self, access: Access, since: int | Since, limit: int | None = None
    ) -> ObjectChanges:
        """Identity/changes (RFC 8621 section 6.2): CANNOT_CALCULATE_CHANGES."""
        check(access)
        return await self._store.read(
            access, changes.identities, since_when(since, limit)
        )
