"""The directory: who exists here, where mail for an address goes, who may sign.

Answers come from a cache that is valid for one version of the directory database.
Changes made through ``write`` are seen at once; those of other processes after at
most ``POLL`` seconds.  A cached answer costs about a microsecond.
"""

from __future__ import annotations

import asyncio
import dataclasses
from array import array
from typing import TYPE_CHECKING, Any, TypeVar

from auth.people import addresses
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.names import a_labels
from storage.directory import (
    ACTIVE,
    DELETED,
    LIVE,
    PURGED,
    AccountRecord,
    DkimKey,
    Login,
    Lookup,
    Resolution,
    Target,
)
from storage.metadata import directory_read as units

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mailserverd.core.ports import Clock
    from storage.api import Database, Work

__all__ = ["Addressing", "Directory", "DkimKey", "Resolution", "Target"]

A = TypeVar("A")
R = TypeVar("R")
log = get_logger("directory")

POLL = 0.5  # seconds for which another process's change may stay unseen
MAX_CACHED = 10_000  # answers; dictionary attacks only push others out
NOWHERE, ELSEWHERE = 0xFFFF, 0xFFFE  # no such account; its shard is not configured


@dataclasses.dataclass(frozen=True, slots=True)
class Addressing:
    """How addresses are read."""

    separator: str = "+"  # alice+lists@ is alice@; "" switches it off
    postmaster: str = ""  # address that gets every postmaster@ and abuse@


ADDRESSING = Addressing()


class Directory:
    """Cached reads and version-raising writes of the directory database.

    ``shards`` are the UUIDs of the metadata shards in the order of ``Shards``.
    Call ``start`` before use, and run ``watch`` beside the server.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        shards: Sequence[bytes],
        addressing: Addressing = ADDRESSING,
    ) -> None:
        self.shards = tuple(shards)
        if len(set(self.shards)) < len(self.shards):
            raise MailError(
                Kind.UNAVAILABLE, "two shards have one UUID: one is a copy of the other"
            )
        self._database = database
        self._clock = clock
        self._addressing = addressing
        self._positions = {uuid: n for n, uuid in enumerate(shards)}
        self._version = -1
        self._checked = 0.0
        self._cache: dict[tuple[str, object], Any] = {}
        self._shard_of = array("H")  # by account id
        self._live: dict[int, tuple[int, frozenset[tuple[int, int]]]] = {}
        self.told: Callable[[], Awaitable[None]] | None = None  # of each write

    # --- keeping up -----------------------------------------------------------

    async def start(self) -> None:
        """Load where every account lives."""
        found = await self._database.read(units.load, 0, None)
        self._checked = self._clock.monotonic()
        self._version, self._cache, self._shard_of = found.version, {}, array("H")
        for uuid, accounts in found.shards:
            where = self._positions.get(uuid, ELSEWHERE)
            for account in accounts:
                self._place(account, where)
        if elsewhere := self.elsewhere():
            log.error("accounts-on-unknown-shards", accounts=elsewhere)

    def elsewhere(self) -> int:
        """Return how many accounts live on shards that are not configured."""
        return self._shard_of.count(ELSEWHERE)

    async def watch(self) -> None:
        """Notice other processes' changes until cancelled."""
        problem = ""
        while True:
            before, problem = problem, ""
            try:
                await self.refresh(now=True)
            except MailError as error:
                problem = str(error)
            if problem and problem != before:
                log.warning("directory-unreadable", error=problem)
            await asyncio.sleep(POLL)

    async def refresh(self, *, now: bool = False) -> None:
        """Drop what is cached if the directory changed, looked up every ``POLL``."""
        if not now and self._clock.monotonic() - self._checked < POLL:
            return
        since = self._version
        change = await self._database.read(units.changes, 0, since)
        self._checked = self._clock.monotonic()
        if change is None:
            return
        for account, _, _ in change.accounts:
            if account in self._live:
                await self.logged_in(account)
        if change.version > self._version:
            self._take(change)

    async def write(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a writing unit of ``storage.metadata.directory``; seen at once here,
        and by whom ``told`` tells."""
        result = await self._database.write(work, account, args)
        await self.refresh(now=True)
        if self.told is not None:
            await self.told()
        return result

    async def read(self, work: Work[A, R], account: int, args: A) -> R:
        """Run a reading unit, uncached."""
        return await self._database.read(work, account, args)

    def _take(self, change: Any) -> None:
        self._checked = self._clock.monotonic()
        if change is None:
            return
        self._version = change.version
        self._cache = {}
        for account, uuid, state in change.accounts:
            gone = state in {DELETED, PURGED}
            where = NOWHERE if gone else self._positions.get(uuid, ELSEWHERE)
            self._place(account, where)

    def _place(self, account: int, where: int) -> None:
        if account >= len(self._shard_of):
            missing = account + 1024 - len(self._shard_of)
            self._shard_of.extend([NOWHERE] * missing)
        self._shard_of[account] = where

    async def _cached(self, work: Work[A, R], account: int, args: A, key: object) -> R:
        """Return a reading unit's answer for this version of the directory."""
        await self.refresh()
        cache, where = self._cache, (work.__name__, key)
        if where in cache:
            known: R = cache[where]
            return known
        answer = await self._database.read(work, account, args)
        if len(cache) >= MAX_CACHED:
            cache.pop(next(iter(cache)))
        cache[where] = answer
        return answer

    # --- addresses ------------------------------------------------------------

    async def resolve(self, address: str) -> Resolution | None:
        """Return where mail for an address goes; None: there is no such user.

        ``postmaster`` may come without domain (RFC 5321 section 4.5.1).
        """
        found = addresses.canonical(address)
        if found is None:
            return None
        lookup = Lookup(*found, self._addressing.separator, self._addressing.postmaster)
        return await self._cached(units.resolve, 0, lookup, found)

    async def is_local(self, domain: str) -> bool:
        """Return whether mail for this domain (U-labels or A-labels) is ours."""
        name = a_labels(domain)
        return name is not None and await self._cached(units.is_domain, 0, name, name)

    async def dkim_keys(self, domain: str) -> tuple[DkimKey, ...]:
        """Return the domain's active signing keys, by selector."""
        name = a_labels(domain)
        if name is None:
            return ()
        keys = await self._cached(units.dkim_keys, 0, name, name)
        return tuple(key for key in keys if key.state == ACTIVE)

    # --- accounts -------------------------------------------------------------

    def shard_of(self, account: int) -> int:
        """Return the position of the account's shard; NOT_FOUND, UNAVAILABLE."""
        known = 0 <= account < len(self._shard_of)
        where = self._shard_of[account] if known else NOWHERE
        if where < ELSEWHERE:
            return where
        if where == NOWHERE:
            raise MailError(Kind.NOT_FOUND, "no such account")
        log.error("shard-not-configured", account=account)
        raise MailError(Kind.UNAVAILABLE, "storage is temporarily unavailable")

    async def account(self, account: int) -> AccountRecord:
        """Return an account; NOT_FOUND when there is none or it was removed."""
        found = await self._cached(units.account, account, None, account)
        if found.state not in LIVE:
            raise MailError(Kind.NOT_FOUND, "no such account")
        return found

    async def account_by_address(self, address: str) -> AccountRecord | None:
        """Return the account that has this address as its own; None: nobody."""
        found = addresses.canonical(address)
        if found is None:
            return None
        return await self._cached(units.account_by_address, 0, found, found)

    async def addresses_of(self, account: int) -> frozenset[str]:
        """Return all addresses the account may send as, in canonical form."""
        return await self._cached(units.sender_addresses, account, None, account)

    async def may_send_as(self, account: int, address: str) -> bool:
        """Return whether the account may use an address in MAIL FROM and From.

        ``alice+x@`` belongs to whom ``alice@`` belongs.
        """
        found = addresses.canonical(address)
        if found is None or not found[1]:
            return False
        own = await self.addresses_of(account)
        if addresses.text(found) in own:
            return True
        separator = self._addressing.separator
        base = found[0].partition(separator)[0] if separator else ""
        return bool(base) and f"{base}@{found[1]}" in own

    # --- logins ---------------------------------------------------------------

    async def login(self, user: str) -> Login | None:
        """Return the account with this own address and its credentials, uncached."""
        found = addresses.canonical(user)
        return None if found is None else await self.read(units.login, 0, found)

    async def logged_in(self, account: int) -> None:
        """Keep knowing which credentials of an account hold, for ``holds``."""
        login = await self.read(units.login_of, account, None)
        active = login is not None and login.state == ACTIVE
        found = login.credentials if login is not None and active else ()
        stamp = login.stamp if login is not None else 0
        if stamp >= self._live.get(account, (0,))[0]:
            known = frozenset((c.credential_id, c.version) for c in found)
            self._live[account] = stamp, known

    def holds(self, account: int, credential: int, version: int) -> bool:
        """Return whether a credential that logged in here still does."""
        known = self._live.get(account)
        return known is not None and (credential, version) in known[1]
