"""Checking passwords: right, fast the second time, slow for who guesses.

A password just verified is remembered as a keyed hash (the key lives in this
process alone), bound to the credential's version: the tenth connection of a client
costs microseconds, and a changed password ends what the old one opened.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import secrets
from typing import TYPE_CHECKING

from auth.people import addresses, passwords
from auth.people.throttle import ALLOWANCE, Allowance, Throttle, network_of
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter
from storage.directory import ACTIVE, APP_PASSWORD, PASSWORD
from storage.metadata import directory as units

if TYPE_CHECKING:
    from auth.people.directory import Directory
    from mailserverd.core.ports import Clock, Offload
    from storage.directory import Credential, Login

log = get_logger("auth")
LOGINS = counter("logins", "Password checks by outcome", ("protocol", "outcome"))


@dataclasses.dataclass(frozen=True, slots=True)
class Principal:
    """Who logged in, and by which version of which credential."""

    account: int
    address: str
    credential: int
    version: int


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What checking passwords may cost."""

    remember: float = 300  # seconds; 0 remembers nothing
    remembered: int = 10_000  # entries
    hashes: int = 2  # at once: each takes ``Cost.memory``
    waiting: int = 200  # checks that may queue for them


LIMITS = Limits()


@dataclasses.dataclass(slots=True)
class _Remembered:
    principal: Principal
    until: float
    networks: set[str]


class Authenticator:
    """Password checks against the directory; one per process."""

    def __init__(
        self,
        directory: Directory,
        clock: Clock,
        offload: Offload,
        *,
        hasher: passwords.Passwords,
        limits: Limits = LIMITS,
        allowance: Allowance = ALLOWANCE,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._offload = offload
        self._hasher = hasher
        self._limits = limits
        self.throttle = Throttle(clock, allowance)
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, _Remembered] = {}
        self._checking: dict[bytes, asyncio.Task[Principal]] = {}
        self._slots = asyncio.Semaphore(limits.hashes)
        self._waiting = 0

    async def check_password(
        self, user: str, password: bytes, *, peer: str, protocol: str
    ) -> Principal:
        """Return who this is; AUTH_FAILED, RATE_LIMITED or UNAVAILABLE otherwise.

        ``user`` is the account's address, ``peer`` the client's IP address.
        AUTH_FAILED does not tell, also not by its time, whether the user exists.
        """
        try:
            principal = await self._check(user, password, network_of(peer) or "local")
        except MailError as error:
            LOGINS.labels(protocol, error.kind.name.lower()).inc()
            log.warning(
                "login-refused",
                user=user[:200],
                peer=peer,
                protocol=protocol,
                reason=error.kind.name,
            )
            raise
        LOGINS.labels(protocol, "ok").inc()
        return principal

    def still_valid(self, principal: Principal) -> bool:
        """Return whether a session may go on: its credential is as it was."""
        return self._directory.holds(
            principal.account, principal.credential, principal.version
        )

    async def _check(self, user: str, password: bytes, network: str) -> Principal:
        name = addresses.canonical(user)
        try:
            prepared = passwords.prepare(password)
        except MailError as error:
            raise _failed() from error
        who = addresses.text(name) if name else "?"
        digest = self._digest(who, prepared)
        await self._directory.refresh()
        known = self._recall(digest)
        if known is not None and network in known.networks:
            return known.principal
        if self.throttle.wait(who, network):
            raise MailError(Kind.RATE_LIMITED, "too many failed logins; try later")
        if known is not None:
            known.networks.add(network)
            self.throttle.trust(who, network)
            return known.principal
        task = self._checking.get(digest)
        if task is None:
            self.throttle.charge(who, network)
            task = asyncio.create_task(self._flight(who, prepared, network))
            self._checking[digest] = task
            task.add_done_callback(lambda done: self._landed(digest, done))
        principal = await asyncio.shield(task)
        self._remember(digest, principal, network)
        return principal

    async def _flight(self, who: str, password: bytes, network: str) -> Principal:
        """Verify once for all who ask at the same time; settles the charge."""
        try:
            principal = await self._verify(who, password)
        except MailError as error:
            if error.kind is not Kind.AUTH_FAILED:
                self.throttle.refund(who, network)
            raise
        self.throttle.refund(who, network)
        self.throttle.trust(who, network)
        return principal

    def _landed(self, digest: bytes, task: asyncio.Task[Principal]) -> None:
        self._checking.pop(digest, None)
        if not task.cancelled():
            task.exception()  # seen, also when every client has gone

    # --- remembering ----------------------------------------------------------

    def _digest(self, user: str, password: bytes) -> bytes:
        text = user.encode(errors="replace") + b"\0" + password
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()

    def _recall(self, digest: bytes) -> _Remembered | None:
        known = self._remembered.get(digest)
        if known is None:
            return None
        if self._clock.monotonic() < known.until and self.still_valid(known.principal):
            return known
        del self._remembered[digest]
        return None

    def _remember(self, digest: bytes, principal: Principal, network: str) -> None:
        if self._limits.remember <= 0:
            return
        known = self._remembered.get(digest)
        networks = known.networks | {network} if known else {network}
        until = self._clock.monotonic() + self._limits.remember
        self._remembered[digest] = _Remembered(principal, until, networks)
        while len(self._remembered) > self._limits.remembered:
            del self._remembered[next(iter(self._remembered))]

    # --- verifying ------------------------------------------------------------

    async def _verify(self, user: str, password: bytes) -> Principal:
        """Check against the directory; every failure costs one argon2id."""
        login = await self._directory.login(user)
        active = login is not None and login.state == ACTIVE
        chosen = _password_of(login) if login is not None and active else None
        if login is not None and active:
            for credential in login.credentials:
                if credential.kind == APP_PASSWORD and passwords.verify_app_password(
                    credential.hash, password
                ):
                    return await self._principal(login, credential)
        if not await self._hash_matches(chosen, password):
            raise _failed()
        assert login is not None and chosen is not None
        if self._hasher.outdated(chosen.hash):
            await self._rehash(chosen, password)
        return await self._principal(login, chosen)

    async def _hash_matches(self, chosen: Credential | None, password: bytes) -> bool:
        if self._waiting >= self._limits.waiting:
            raise MailError(Kind.UNAVAILABLE, "too many logins at once; try later")
        self._waiting += 1
        try:
            async with self._slots:
                if chosen is None:
                    return await self._offload(self._hasher.verify_nobody, password)
                return await self._offload(self._hasher.verify, chosen.hash, password)
        finally:
            self._waiting -= 1

    async def _principal(self, login: Login, credential: Credential) -> Principal:
        principal = Principal(
            login.account, login.address, credential.credential_id, credential.version
        )
        await self._directory.logged_in(login.account)
        if not self.still_valid(principal):  # changed while it was being checked
            raise _failed()
        return principal

    async def _rehash(self, credential: Credential, password: bytes) -> None:
        """Keep today's kind of hash of a password that is known to be right."""
        async with self._slots:
            encoded = await self._offload(self._hasher.hash, password)
        args = (credential.credential_id, credential.version, encoded)
        try:
            await self._directory.write(units.rehash, 0, args)
        except MailError as error:
            log.warning("rehash-failed", error=str(error))


def _password_of(login: Login) -> Credential | None:
    return next((c for c in login.credentials if c.kind == PASSWORD), None)


def _failed() -> MailError:
    return MailError(Kind.AUTH_FAILED, "wrong user name or password")
