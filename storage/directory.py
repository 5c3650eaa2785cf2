"""Plain data of the directory database: domains, accounts, aliases, keys.

Addresses are canonical: ``local@domain`` with a case-folded local part and the
domain as lower-case A-labels.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array

CREATING, ACTIVE, DISABLED = "creating", "active", "disabled"
DELETED, PURGED = "deleted", "purged"
LIVE = (ACTIVE, DISABLED)
PASSWORD, APP_PASSWORD = "password", "app-password"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A local mailbox that an address leads to; ``detail`` is what follows "+"."""

    account: int
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Resolution:
    """Where mail for one address goes: local accounts and addresses elsewhere.

    Never empty: an address that leads nowhere does not resolve.
    """

    targets: tuple[Target, ...] = ()
    forwards: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Lookup:
    """What to resolve, and how addresses are read."""

    local: str
    domain: str
    separator: str = "+"  # "" switches plus addressing off
    postmaster: str = ""  # canonical address that stands for every postmaster@


@dataclasses.dataclass(frozen=True, slots=True)
class DkimKey:
    """A signing key of a domain (RFC 6376, RFC 8463)."""

    selector: str
    algorithm: str  # rsa ed25519
    pem: str
    txt: str = ""  # the record to publish at SELECTOR._domainkey.DOMAIN
    state: str = "active"  # active retired


@dataclasses.dataclass(frozen=True, slots=True)
class AddDomain:
    """A domain to serve, with its first keys."""

    name: str
    keys: tuple[DkimKey, ...] = ()
    postmaster: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class DomainRecord:
    """A domain as ``domain list`` shows it."""

    name: str
    postmaster: str
    created: int
    accounts: int
    aliases: int
    keys: tuple[DkimKey, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class AddAccount:
    """An account to make; ``hash`` is the encoded password hash."""

    local: str
    domain: str
    shard: bytes
    hash: str
    name: str = ""
    admin: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account as the directory knows it."""

    account_id: int
    address: str
    name: str
    shard: bytes
    state: str  # creating active disabled deleted purged
    admin: bool
    created: int


@dataclasses.dataclass(frozen=True, slots=True)
class AddAlias:
    """An alias to make; ``replace`` allows it to exist."""

    local: str
    domain: str
    targets: tuple[str, ...]
    send_as: bool
    replace: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class AliasRecord:
    """An alias and where it leads."""

    address: str
    targets: tuple[str, ...]
    send_as: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SetCredential:
    """A password to set (``name`` "") or an app password to add under a name."""

    account: int
    hash: str
    kind: str = PASSWORD
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Credential:
    """One way to log in; ``version`` changes with its hash."""

    credential_id: int
    kind: str
    name: str
    hash: str
    version: int
    created: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """An account as authentication sees it."""

    account: int
    address: str
    state: str
    credentials: tuple[Credential, ...]
    stamp: int = 0  # the directory's version at the account's last change


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Where every account lives that is not removed: (shard UUID, account ids)."""

    version: int
    shards: tuple[tuple[bytes, array[int]], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class DirectoryChange:
    """What changed since a version: (account, shard UUID, state) of each account."""

    version: int
    accounts: tuple[tuple[int, bytes, str], ...]
