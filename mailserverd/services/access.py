"""What every service asserts before it asks for a unit of work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import SYSTEM
from storage.model import Since

if TYPE_CHECKING:
    from mailserverd.core.types import Access


def check(access: Access) -> None:
    """Raise FORBIDDEN unless the principal owns the account or is the daemon."""
    if access.principal not in {access.account, SYSTEM}:
        raise MailError(Kind.FORBIDDEN, "no access to this account")


def since_when(since: int | Since, limit: int | None) -> Since:
    """Return the arguments of a changes unit."""
    return since if isinstance(since, Since) else Since(since, limit)
