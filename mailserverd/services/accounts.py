"""Use cases behind the commands: accounts, passwords, domains, aliases.

Every method takes and returns plain data that JSON can carry, and is named after its
command.  Changes are effective in this process when they return.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

from auth.mail.keys import generate_key
from auth.people import addresses, passwords
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.names import a_labels
from mailserverd.core.types import system
from mailserverd.services import dns_records
from mailserverd.services.health import problem_of
from storage.directory import (
    ACTIVE,
    APP_PASSWORD,
    CREATING,
    DISABLED,
    AccountRecord,
    AddAccount,
    AddAlias,
    AddDomain,
    DkimKey,
    SetCredential,
)
from storage.metadata import accounts as shard_units
from storage.metadata import aliases, directory, directory_read
from storage.metadata.deliver import prepare_account
from storage.metadata.prune import last_account
from storage.metadata.purge import purge_account
from storage.model import NewAccount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from auth.people.directory import Directory
    from mailserverd.core.ports import Clock, Offload
    from storage.metadata.shards import Shards

log = get_logger("accounts")

PAGE = 500  # accounts read at once
PURGE_ROWS = 500  # of each table in one transaction
MIN_APP_PASSWORD = 16  # characters: app passwords are random, so one fast hash does
KEY_KINDS = ("rsa", "ed25519")
Plain = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Tools:
    """What the use cases need besides the databases.

    ``forget`` is told the id of each account removed, to drop what is kept of it
    outside the databases (search index).
    """

    hasher: passwords.Passwords
    offload: Offload
    clock: Clock
    hostname: str
    dns_servers: tuple[str, ...] = ()
    forget: Callable[[int], Awaitable[None]] | None = None


class Accounts:
    """Call ``recover`` once at start, before anything is served."""

    def __init__(self, directory: Directory, shards: Shards, tools: Tools) -> None:
        self._directory = directory
        self._shards = shards
        self._shard_ids = directory.shards
        self._hasher = tools.hasher
        self._offload = tools.offload
        self._clock = tools.clock
        self._hostname = tools.hostname
        self._dns_servers = tools.dns_servers
        self._forget = tools.forget

    def commands(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Return the methods by command name: ``account.add`` and so on."""
        return {
            "account.add": self.account_add,
            "account.list": self.account_list,
            "account.remove": self.account_remove,
            "account.passwd": self.account_passwd,
            "account.app-password": self.account_app_password,
            "account.quota": self.account_quota,
            "account.enable": self.account_enable,
            "domain.add": self.domain_add,
            "domain.list": self.domain_list,
            "domain.remove": self.domain_remove,
            "domain.dns": self.domain_dns,
            "domain.postmaster": self.domain_postmaster,
            "alias.add": self.alias_add,
            "alias.list": self.alias_list,
            "alias.remove": self.alias_remove,
        }

    async def recover(self) -> None:
        """Finish what a crash left: reserved accounts and removed ones go."""
        for record in await self._directory.read(directory.unfinished, 0, None):
            account = record.account_id
            if record.state == CREATING:
                await self._directory.write(directory.abandon_account, account, None)
            await self._purge_or_postpone(record)

    async def _purge_or_postpone(self, record: AccountRecord) -> None:
        """Remove an ended account's mail, at the next start if its shard is down."""
        try:
            await self._purge(record)
        except MailError as error:
            account = record.account_id
            log.warning("purge-postponed", account=account, reason=error.text)

    # --- accounts -------------------------------------------------------------

    async def account_add(
        self,
        address: str,
        password: str,
        *,
        name: str = "",
        quota: int = 0,
        admin: bool = False,
        dry_run: bool = False,
    ) -> Plain:
        """Make an account; ``quota`` in octets, 0 unlimited."""
        local, domain = addresses.new_address(address)
        if not name.isprintable():
            raise MailError(Kind.INVALID, "the name has control characters")
        prepared = passwords.prepare(password.encode())
        canonical = addresses.text((local, domain))
        await self._must_be_free(local, domain)
        if dry_run:
            return {"address": canonical, "dry_run": True}
        encoded = await self._offload(self._hasher.hash, prepared)
        shard = await self._emptiest_shard()
        new = AddAccount(local, domain, shard, encoded, name, admin)
        write = self._directory.write
        account = await write(directory.reserve_account, 0, new)
        try:
            first = NewAccount(canonical, name, quota)
            await self._shards.write(system(account), prepare_account, first)
            record = await write(directory.activate_account, account, new)
        except BaseException:
            await write(directory.abandon_account, account, None)
            raise
        log.info("account-added", account=account, address=canonical)
        return self._account(record) | {"quota": quota}

    async def account_list(self, domain: str = "") -> list[Plain]:
        """Return all accounts (of a domain), with what they use."""
        name = _domain(domain) if domain else ""
        rows: list[Plain] = []
        after = 0
        while page := await self._directory.read(
            directory.list_accounts, 0, (after, PAGE)
        ):
            after = page[-1].account_id
            rows += [
                self._account(record) | await self._usage(record.account_id)
                for record in page
                if name in {"", record.address.rpartition("@")[2]}
            ]
        return sorted(rows, key=lambda row: row["address"].split("@")[::-1])

    async def account_remove(self, address: str, *, dry_run: bool = False) -> Plain:
        """End an account at once, then remove its mail."""
        record = await self._existing(address)
        if not dry_run:
            account = record.account_id
            await self._directory.write(directory.remove_account, account, None)
            log.info("account-removed", account=account, address=record.address)
            await self._purge_or_postpone(record)
        return {"address": record.address, "dry_run": dry_run}

    async def account_passwd(
        self, address: str, password: str, *, dry_run: bool = False
    ) -> Plain:
        """Set the password; sessions that used the old one end."""
        record = await self._existing(address)
        prepared = passwords.prepare(password.encode())
        if not dry_run:
            encoded = await self._offload(self._hasher.hash, prepared)
            new = SetCredential(record.account_id, encoded)
            await self._set_credential(new)
        return {"address": record.address, "dry_run": dry_run}

    async def account_app_password(
        self, address: str, name: str, password: str = "", *, dry_run: bool = False
    ) -> Plain:
        """Add a generated password for one device, or ("" given) remove it by name."""
        record = await self._existing(address)
        result = {"address": record.address, "name": name, "dry_run": dry_run}
        if not name.isprintable() or not name.strip():
            raise MailError(Kind.INVALID, "an app password needs a printable name")
        if password and len(password) < MIN_APP_PASSWORD:
            raise MailError(Kind.INVALID, "an app password is generated, not chosen")
        if dry_run:
            return result
        account = record.account_id
        if password:
            encoded = passwords.hash_app_password(password)
            await self._set_credential(
                SetCredential(account, encoded, APP_PASSWORD, name)
            )
        else:
            await self._directory.write(
                directory.remove_credential, account, (APP_PASSWORD, name)
            )
        return result

    async def account_quota(
        self, address: str, quota: int | None = None, *, dry_run: bool = False
    ) -> Plain:
        """Return quota and use in octets, after setting the quota when given."""
        record = await self._existing(address)
        if quota is not None and quota < 0:
            raise MailError(Kind.INVALID, "a quota is not negative")
        if quota is not None and not dry_run:
            await self._shards.write(
                system(record.account_id), shard_units.set_quota, quota
            )
        shown = {} if quota is None else {"quota": quota}
        usage = await self._usage(record.account_id)
        return {"address": record.address} | usage | shown

    async def account_enable(
        self, address: str, *, on: bool = True, dry_run: bool = False
    ) -> Plain:
        """Allow or forbid logins; sessions end, mail still arrives."""
        record = await self._existing(address)
        state = ACTIVE if on else DISABLED
        if not dry_run:
            await self._directory.write(directory.set_state, record.account_id, state)
        return {"address": record.address, "state": state}

    async def _must_be_free(self, local: str, domain: str) -> None:
        if not await self._directory.is_local(domain):
            raise MailError(
                Kind.NOT_FOUND,
                f"domain {domain} is not served here; run: "
                f"mailserverd domain add {domain}",
            )
        if await self._directory.read(directory_read.is_taken, 0, (local, domain)):
            raise MailError(Kind.ALREADY_EXISTS, f"address {local}@{domain} exists")

    async def _existing(self, address: str) -> AccountRecord:
        record = await self._directory.account_by_address(address)
        if record is None:
            raise MailError(Kind.NOT_FOUND, f"no account {address[:100]!a}")
        return record

    async def _set_credential(self, new: SetCredential) -> None:
        await self._directory.write(directory.set_credential, new.account, new)
        log.info("credential-set", account=new.account, kind=new.kind, name=new.name)

    async def _emptiest_shard(self) -> bytes:
        """Return the shard with the fewest accounts of those that work.

        UNAVAILABLE when none does, or when one has accounts that the directory does
        not know: a new one would be given their mail.
        """
        counts = await self._directory.read(directory.count_by_shard, 0, None)
        problems = await asyncio.gather(*map(problem_of, self._shards.databases))
        working = [
            one
            for one, problem in zip(self._shards.databases, problems, strict=True)
            if not problem
        ]
        if not working:
            raise MailError(Kind.UNAVAILABLE, "no shard works")
        for shard in working:
            greatest = await shard.read(last_account, 0, None)
            if greatest > await self._directory.read(directory.last_account, 0, None):
                raise MailError(
                    Kind.UNAVAILABLE,
                    f"{shard.name} has account {greatest}, which the directory does "
                    "not know; run: mailserverd storage check --repair",
                )
        return min(working, key=lambda one: counts.get(one.uuid, 0)).uuid

    async def _usage(self, account: int) -> Plain:
        """Return counts of an account; a shard that is down leaves them empty."""
        try:
            state = await self._shards.read(system(account), shard_units.state, None)
        except MailError as error:
            return {
                "messages": None,
                "used": None,
                "quota": None,
                "problem": str(error),
            }
        return {
            "messages": state.message_count,
            "used": state.quota_used,
            "quota": state.quota_limit,
        }

    async def _purge(self, record: AccountRecord) -> None:
        """Remove an ended account's mail from its shard, in small transactions."""
        account = record.account_id
        if record.shard not in self._shard_ids:
            log.warning("purge-postponed", account=account, reason="shard unknown")
            return
        shard = self._shards.databases[self._shard_ids.index(record.shard)]
        gone = 1
        while gone:
            gone = await shard.write(purge_account, account, PURGE_ROWS)
        if self._forget is not None:
            await self._forget(account)
        await self._directory.write(directory.mark_purged, account, None)
        log.info("account-purged", account=account)

    def _account(self, record: AccountRecord) -> Plain:
        known = record.shard in self._shard_ids
        return {
            "account": record.account_id,
            "address": record.address,
            "name": record.name,
            "state": record.state,
            "admin": record.admin,
            "shard": self._shard_ids.index(record.shard) if known else None,
            "created": record.created,
        }

    # --- domains --------------------------------------------------------------

    async def domain_add(self, domain: str, *, dry_run: bool = False) -> Plain:
        """Serve a domain and make its DKIM keys, RSA and Ed25519."""
        name = _domain(domain)
        if await self._directory.is_local(name):
            raise MailError(Kind.ALREADY_EXISTS, f"domain {name} exists")
        if not dry_run:
            stem = _selector(self._clock.now())
            keys = tuple([await self._new_key(kind, stem) for kind in KEY_KINDS])
            await self._directory.write(directory.add_domain, 0, AddDomain(name, keys))
            log.info("domain-added", domain=name)
        return {"domain": name, "dry_run": dry_run}

    async def domain_list(self) -> list[Plain]:
        """Return all domains with numbers of addresses and their DKIM selectors."""
        found = await self._directory.read(directory.list_domains, 0, None)
        return [
            {
                "domain": row.name,
                "accounts": row.accounts,
                "aliases": row.aliases,
                "postmaster": row.postmaster,
                "selectors": [key.selector for key in row.keys],
                "created": row.created,
            }
            for row in found
        ]

    async def domain_remove(
        self, domain: str, *, force: bool = False, dry_run: bool = False
    ) -> Plain:
        """Stop serving a domain; with ``force`` its accounts and mail go too."""
        name = _domain(domain)
        result: Plain = {"domain": name, "dry_run": dry_run}
        if dry_run:
            rows = [r for r in await self.domain_list() if r["domain"] == name]
            if not rows:
                raise MailError(Kind.NOT_FOUND, f"domain {name} is not served here")
            return result | rows[0]
        removed = await self._directory.write(directory.remove_domain, 0, (name, force))
        log.info("domain-removed", domain=name, accounts=len(removed))
        await self.recover()
        return result

    async def domain_postmaster(
        self, domain: str, address: str = "", *, dry_run: bool = False
    ) -> Plain:
        """Say who gets postmaster@ and abuse@ of a domain; "" the first account."""
        name = _domain(domain)
        target = addresses.text(addresses.parse(address)) if address else ""
        if target:
            await self._check_targets((target,))
        if not dry_run:
            await self._directory.write(directory.set_postmaster, 0, (name, target))
        return {"domain": name, "postmaster": target}

    async def domain_dns(self, domain: str, *, check: bool = False) -> Plain:
        """Return the records to publish, and how they compare with the live DNS."""
        name = _domain(domain)
        if not await self._directory.is_local(name):
            raise MailError(Kind.NOT_FOUND, f"domain {name} is not served here")
        keys = await self._directory.dkim_keys(name)
        records = dns_records.records(name, self._hostname, keys)
        result: Plain = {
            "domain": name,
            "records": [record.as_dict() for record in records],
        }
        if check:
            from mailserverd.services import dns_check  # noqa: PLC0415 - heavy

            result["check"] = await self._offload(
                dns_check.check, records, name, self._hostname, self._dns_servers
            )
        return result

    async def _new_key(self, kind: str, stem: str) -> DkimKey:
        pem, txt = await self._offload(generate_key, kind)
        return DkimKey(f"{stem}{kind[0]}", kind, pem.decode(), txt)

    # --- aliases --------------------------------------------------------------

    async def alias_add(
        self,
        address: str,
        targets: Sequence[str],
        *,
        send_as: bool | None = None,
        dry_run: bool = False,
    ) -> Plain:
        """Lead an address to others, here or elsewhere.

        The account behind a single target may send as the alias, unless told
        otherwise; with several targets none may.
        """
        local, domain = addresses.new_address(address)
        if local == "*":
            raise MailError(Kind.INVALID, "an alias is one address: no catch-all")
        found = tuple(addresses.text(addresses.parse(target)) for target in targets)
        own = len(found) == 1 if send_as is None else send_as
        await self._check_targets(found)
        await self._must_be_free(local, domain)
        if not dry_run:
            new = AddAlias(local, domain, found, own)
            await self._directory.write(aliases.add_alias, 0, new)
            log.info("alias-added", alias=addresses.text((local, domain)))
        return {
            "address": addresses.text((local, domain)),
            "targets": list(found),
            "send_as": own,
            "dry_run": dry_run,
        }

    async def alias_list(self, domain: str = "") -> list[Plain]:
        """Return all aliases (of a domain)."""
        name = _domain(domain) if domain else ""
        found = await self._directory.read(aliases.list_aliases, 0, name)
        return [
            {"address": a.address, "targets": list(a.targets), "send_as": a.send_as}
            for a in found
        ]

    async def alias_remove(self, address: str, *, dry_run: bool = False) -> Plain:
        """Remove an alias."""
        local, domain = addresses.parse(address)
        text = addresses.text((local, domain))
        if not dry_run:
            await self._directory.write(aliases.remove_alias, 0, (local, domain))
            log.info("alias-removed", alias=text)
        elif text not in {row["address"] for row in await self.alias_list(domain)}:
            raise MailError(Kind.NOT_FOUND, f"no alias {text}")
        return {"address": text, "dry_run": dry_run}

    async def _check_targets(self, targets: Sequence[str]) -> None:
        """INVALID for a target in a domain of ours that leads nowhere."""
        for target in targets:
            here = await self._directory.is_local(target.rpartition("@")[2])
            if here and await self._directory.resolve(target) is None:
                raise MailError(Kind.INVALID, f"target {target} does not exist")


def _domain(name: str) -> str:
    """Return a domain that can be served, as A-labels; INVALID."""
    found = a_labels(name)
    if found is None or not all(_is_host_label(p) for p in found.split(".")):
        raise MailError(Kind.INVALID, f"not a domain name: {name[:100]!a}")
    return found


def _is_host_label(label: str) -> bool:
    alphanumeric = label.replace("-", "").isalnum()
    return alphanumeric and label[0] != "-" and label[-1] != "-"


def _selector(now: float) -> str:
    """Return the stem of a new selector: the month, ``s202611``."""
    return datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("s%Y%m")
