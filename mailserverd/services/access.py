"""Who may touch which account: asserted before any unit of work is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import SYSTEM

if TYPE_CHECKING:
    from mailserverd.core.types import Access


def check(access: Access) -> None:
    """Raise FORBIDDEN unless the principal owns the account or is the daemon."""
    if access.principal not in {access.account, SYSTEM}:
        raise MailError(Kind.FORBIDDEN, "no access to this account")
