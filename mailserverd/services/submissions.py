"""Records of what was submitted (RFC 8621 section 7); the queue knows the fate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.services.access import check, since_when
from storage.metadata import changes, submissions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.core.types import Access
    from mailserverd.services.changes import Changes
    from storage.api import MetadataStore
    from storage.model import (
        AccountState,
        EmailQuery,
        ObjectChanges,
        QueryResult,
        Since,
        SubmissionRow,
    )


class Submissions:
    """The EmailSubmission objects of accounts."""

    def __init__(self, store: MetadataStore, changes: Changes) -> None:
        self._store = store
        self._changes = changes

    async def get(
        self, access: Access, submission_ids: Sequence[int] | None
    ) -> tuple[AccountState, tuple[SubmissionRow, ...]]:
        """Return submissions by id, or all; unknown ids are left out."""
        check(access)
        return await self._store.read(access, submissions.read, submission_ids)

    async def create(self, access: Access, new: SubmissionRow) -> SubmissionRow:
        """Add a submission; its id and modseq are set."""
        check(access)
        made = await self._store.write(access, submissions.create, new)
        self._changes.announce(access.account, made.modseq)
        return made

    async def update(self, access: Access, new: SubmissionRow) -> SubmissionRow:
        """Replace undo status, queue id, send time, delivery status.  NOT_FOUND."""
        check(access)
        made = await self._store.write(access, submissions.change, new)
        self._changes.announce(access.account, made.modseq)
        return made

    async def destroy(self, access: Access, submission_id: int) -> None:
        """Remove the record; mail under way is not touched.  NOT_FOUND."""
        check(access)
        modseq = await self._store.write(access, submissions.destroy, submission_id)
        self._changes.announce(access.account, modseq)

    async def changes(
        self, access: Access, since: int | Since, limit: int | None = None
    ) -> ObjectChanges:
        """EmailSubmission/changes (RFC 8621 section 7.2): CANNOT_CALCULATE_CHANGES."""
        check(access)
        return await self._store.read(
            access, changes.submissions, since_when(since, limit)
        )

    async def query(self, access: Access, query: EmailQuery) -> QueryResult:
        """EmailSubmission/query (RFC 8621 section 7.3).

        Conditions and comparators as ``storage.metadata.submissions.query`` says;
        UNSUPPORTED, ANCHOR_NOT_FOUND.
        """
        check(access)
        return await self._store.read(access, submissions.query, query)
