"""All shards as one ``MetadataStore``: an account's units go to its database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from mailserverd.core.errors import Kind, MailError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mailserverd.core.types import Access
    from storage.api import Database, Work

A = TypeVar("A")
R = TypeVar("R")


class Shards:
    """Databases in the order of the configuration.

    ``locate`` (``Directory.shard_of``) returns an account's position in it, and
    raises NOT_FOUND for an account that does not exist.
    """

    def __init__(
        self, databases: Sequence[Database], locate: Callable[[int], int]
    ) -> None:
        self.databases = tuple(databases)
        self._locate = locate

    async def write(self, access: Access, work: Work[A, R], args: A) -> R:
        """``Database.write`` on the account's shard."""
        account = access.account
        return await self.databases[self._locate(account)].write(work, account, args)

    async def read(self, access: Access, work: Work[A, R], args: A) -> R:
        """``Database.read`` on the account's shard."""
        account = access.account
        return await self.databases[self._locate(account)].read(work, account, args)

    def shard_of(self, account: int) -> int:
        """Return the shard's position, to group recipients; NOT_FOUND otherwise."""
        return self._locate(account)

    async def close(self) -> None:
        """Finish what is pending on every shard, then close them."""
        ends = await asyncio.gather(
            *(database.close() for database in self.databases), return_exceptions=True
        )
        if any(isinstance(end, BaseException) for end in ends):
            raise MailError(Kind.UNAVAILABLE, "a shard did not close") from next(
                end for end in ends if isinstance(end, BaseException)
            )
