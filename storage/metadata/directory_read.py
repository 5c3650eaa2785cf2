"""Reading units of the directory: resolving addresses, logins, what changed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy import select

from mailserverd.core.errors import Kind, MailError
from storage.directory import (
    DELETED,
    LIVE,
    PURGED,
    AccountRecord,
    Credential,
    DirectoryChange,
    DkimKey,
    Login,
    Lookup,
    Placement,
    Resolution,
    Target,
)
from storage.metadata.directory_tables import (
    ACCOUNT,
    ADDRESS,
    ALIAS_TARGET,
    CREDENTIAL,
    DKIM_KEY,
    DOMAIN,
    STATE,
)
from storage.metadata.packed import Packed, numbers
from storage.metadata.sql import Sql, inline, p

if TYPE_CHECKING:
    from storage.api import Row, Tx

MAX_DEPTH = 10  # aliases that lead to aliases
MAX_EXPANSION = 500  # addresses looked at for one recipient
ROLE_ADDRESSES = frozenset({"postmaster", "abuse"})  # RFC 5321 4.5.1, RFC 2142

A, D, T = ADDRESS.c, DOMAIN.c, ALIAS_TARGET.c
VERSION = Sql(select(STATE.c.version).where(STATE.c.id == 1))
CHANGED = Sql(
    select(ACCOUNT.c.account_id, ACCOUNT.c.shard, ACCOUNT.c.state).where(
        ACCOUNT.c.version > p("since")
    )
)
PLACES = Sql(
    select(ACCOUNT.c.shard, Packed(ACCOUNT.c.account_id))
    .where(ACCOUNT.c.state.not_in((DELETED, PURGED)))
    .group_by(ACCOUNT.c.shard)
)
DOMAIN_BY_NAME = Sql(select(D.domain_id, D.postmaster).where(D.name == p("name")))
ADDRESS_BY_KEY = Sql(
    select(A.account_id).where(A.domain_id == p("domain"), A.local == p("local"))
)
TARGETS = Sql(
    select(T.target, T.send_as)
    .where(T.domain_id == p("domain"), T.local == p("local"))
    .order_by(T.position)
)
IS_LIVE = ACCOUNT.c.state.in_(LIVE)
ADMIN_OF_DOMAIN = Sql(
    select(A.account_id)
    .join(ACCOUNT, ACCOUNT.c.account_id == A.account_id)
    .where(A.domain_id == p("domain"), ACCOUNT.c.admin == 1)
    .order_by(A.account_id)
    .limit(1)
)
FIRST_OF_DOMAIN = Sql(
    select(A.account_id)
    .where(A.domain_id == p("domain"), A.account_id.is_not(None))
    .order_by(A.account_id)
    .limit(1)
)
ADMIN = Sql(
    select(ACCOUNT.c.account_id)
    .where(ACCOUNT.c.admin == 1, IS_LIVE)
    .order_by(ACCOUNT.c.account_id)
    .limit(1)
)
FIRST = Sql(
    select(ACCOUNT.c.account_id).where(IS_LIVE).order_by(ACCOUNT.c.account_id).limit(1)
)
ACCOUNT_COLUMNS = (
    ACCOUNT.c.account_id,
    ACCOUNT.c.address,
    ACCOUNT.c.name,
    ACCOUNT.c.shard,
    ACCOUNT.c.state,
    ACCOUNT.c.admin,
    ACCOUNT.c.created,
)
ACCOUNT_BY_ID = Sql(
    select(*ACCOUNT_COLUMNS).where(ACCOUNT.c.account_id == p("account"))
)
LOGIN_BY_ID = Sql(
    select(ACCOUNT.c.address, ACCOUNT.c.state, ACCOUNT.c.version).where(
        ACCOUNT.c.account_id == p("account")
    )
)
CREDENTIALS = Sql(
    select(
        CREDENTIAL.c.credential_id,
        CREDENTIAL.c.kind,
        CREDENTIAL.c.name,
        CREDENTIAL.c.hash,
        CREDENTIAL.c.version,
        CREDENTIAL.c.created,
    )
    .where(CREDENTIAL.c.account_id == p("account"))
    .order_by(CREDENTIAL.c.credential_id)
)
OWN_ADDRESSES = Sql(
    select(A.local, D.name)
    .join(DOMAIN, D.domain_id == A.domain_id)
    .where(A.account_id == p("account"))
)
ALIASES_TO = Sql(
    select(T.local, D.name)
    .join(DOMAIN, D.domain_id == T.domain_id)
    .where(T.target == p("target"), T.send_as == 1)
)
KEYS = Sql(
    select(
        DKIM_KEY.c.selector,
        DKIM_KEY.c.algorithm,
        DKIM_KEY.c.pem,
        DKIM_KEY.c.txt,
        DKIM_KEY.c.state,
    )
    .join(DOMAIN, D.domain_id == DKIM_KEY.c.domain_id)
    .where(D.name == p("name"))
    .order_by(DKIM_KEY.c.selector)
)


@inline
def changes(tx: Tx, _account: int, since: int) -> DirectoryChange | None:
    """Return what changed after version ``since``; None when nothing did."""
    row = tx.one(VERSION)
    version = row[0] if row else 0
    if version == since:
        return None
    rows = tx.all(CHANGED, {"since": since})
    return DirectoryChange(version, tuple((r[0], r[1], r[2]) for r in rows))


def load(tx: Tx, _account: int, _args: None) -> Placement:
    """Return where all accounts live, compactly: for the start of the daemon."""
    row = tx.one(VERSION)
    found = tx.all(PLACES)
    return Placement(
        row[0] if row else 0, tuple((uuid, numbers("Q", ids)) for uuid, ids in found)
    )


@inline
def is_domain(tx: Tx, _account: int, name: str) -> bool:
    """Return whether the domain is served here."""
    return tx.one(DOMAIN_BY_NAME, {"name": name}) is not None


@inline
def account(tx: Tx, account_id: int, _args: None) -> AccountRecord:
    """Return an account in whatever state; NOT_FOUND."""
    row = tx.one(ACCOUNT_BY_ID, {"account": account_id})
    if row is None:
        raise MailError(Kind.NOT_FOUND, "no such account")
    return account_record(row)


def account_record(row: Row) -> AccountRecord:
    """Turn a row of ACCOUNT_COLUMNS into what callers see."""
    account_id, address, name, shard, state, admin, created = row
    return AccountRecord(account_id, address, name, shard, state, bool(admin), created)


@inline
def account_by_address(
    tx: Tx, _account: int, address: tuple[str, str]
) -> AccountRecord | None:
    """Return the account whose own address (local, domain) this is."""
    account_id = _owner(tx, *address)
    return account(tx, account_id, None) if account_id else None


@inline
def login(tx: Tx, _account: int, address: tuple[str, str]) -> Login | None:
    """Return what authentication needs of the account with this own address."""
    account_id = _owner(tx, *address)
    return login_of(tx, account_id, None) if account_id else None


@inline
def login_of(tx: Tx, account_id: int, _args: None) -> Login | None:
    """Return what authentication needs of an account."""
    row = tx.one(LOGIN_BY_ID, {"account": account_id})
    if row is None:
        return None
    address, state, stamp = row
    found = tx.all(CREDENTIALS, {"account": account_id})
    credentials = tuple(Credential(*r) for r in found)
    return Login(account_id, address, state, credentials, stamp)


@inline
def sender_addresses(tx: Tx, account_id: int, _args: None) -> frozenset[str]:
    """Return every address the account may send as: own ones and its aliases."""
    own = tx.all(OWN_ADDRESSES, {"account": account_id})
    found = {f"{local}@{domain}" for local, domain in own}
    fresh = list(found)
    while fresh and len(found) < MAX_EXPANSION:
        target = fresh.pop()
        for local, domain in tx.all(ALIASES_TO, {"target": target}):
            alias = f"{local}@{domain}"
            if alias not in found:
                found.add(alias)
                fresh.append(alias)
    return frozenset(found)


@inline
def dkim_keys(tx: Tx, _account: int, name: str) -> tuple[DkimKey, ...]:
    """Return a domain's keys, by selector; empty for a domain not served."""
    return tuple(DkimKey(*row) for row in tx.all(KEYS, {"name": name}))


@inline
def is_taken(tx: Tx, _account: int, address: tuple[str, str]) -> bool:
    """Return whether an account or alias has exactly this (local, domain)."""
    local, name = address
    row = tx.one(DOMAIN_BY_NAME, {"name": name})
    key = {"domain": row[0] if row else 0, "local": local}
    return tx.one(ADDRESS_BY_KEY, key) is not None


def _owner(tx: Tx, local: str, domain: str) -> int:
    row = tx.one(DOMAIN_BY_NAME, {"name": domain})
    if row is None:
        return 0
    found = tx.one(ADDRESS_BY_KEY, {"domain": row[0], "local": local})
    return (found[0] or 0) if found else 0


# --- resolving ---------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Expansion:
    """One recipient being expanded: what was seen, and what came out."""

    lookup: Lookup
    seen: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    targets: dict[int, Target] = dataclasses.field(default_factory=dict)
    forwards: dict[str, None] = dataclasses.field(default_factory=dict)


@inline
def resolve(tx: Tx, _account: int, lookup: Lookup) -> Resolution | None:
    """Return where mail for an address goes; None when there is no such user.

    An alias that leads back to itself adds nothing.  LIMIT when aliases are nested
    deeper than MAX_DEPTH or lead to more than MAX_EXPANSION addresses.
    """
    expansion = _Expansion(lookup)
    if lookup.domain:
        _expand(tx, expansion, (lookup.local, lookup.domain), "", 0)
    elif lookup.local in ROLE_ADDRESSES:
        _expand_role(tx, expansion, None, "", 0)
    if not expansion.targets and not expansion.forwards:
        return None
    return Resolution(tuple(expansion.targets.values()), tuple(expansion.forwards))


def _expand(
    tx: Tx, into: _Expansion, address: tuple[str, str], detail: str, depth: int
) -> None:
    if address in into.seen:
        return
    if depth > MAX_DEPTH or len(into.seen) >= MAX_EXPANSION:
        raise MailError(Kind.LIMIT, "alias leads to too many addresses")
    into.seen.add(address)
    local, name = address
    domain = tx.one(DOMAIN_BY_NAME, {"name": name})
    if domain is None:
        if depth:
            into.forwards[f"{local}@{name}"] = None
        return
    base, own_detail, found = _find(tx, domain[0], local, into.lookup.separator)
    detail = own_detail or detail
    if found is None:
        if base in ROLE_ADDRESSES:
            _expand_role(tx, into, domain, detail, depth)
    elif found[0] is not None:
        into.targets.setdefault(found[0], Target(found[0], detail))
    else:
        for target, _ in tx.all(TARGETS, {"domain": domain[0], "local": base}):
            _expand_text(tx, into, target, detail, depth + 1)


def _find(
    tx: Tx, domain: int, local: str, separator: str
) -> tuple[str, str, Row | None]:
    """Return the local part and detail that match, and the address row if any."""
    found = tx.one(ADDRESS_BY_KEY, {"domain": domain, "local": local})
    if found is not None or not separator:
        return local, "", found
    base, plus, detail = local.partition(separator)
    if not plus or not base:
        return local, "", None
    return base, detail, tx.one(ADDRESS_BY_KEY, {"domain": domain, "local": base})


def _expand_text(
    tx: Tx, into: _Expansion, address: str, detail: str, depth: int
) -> None:
    local, _, name = address.rpartition("@")
    _expand(tx, into, (local, name), detail, depth)


def _expand_role(
    tx: Tx, into: _Expansion, domain: tuple[int, str] | None, detail: str, depth: int
) -> None:
    """Find who answers for postmaster@ and abuse@ of a domain (or of none)."""
    for address in (domain[1] if domain else "", into.lookup.postmaster):
        if address:
            _expand_text(tx, into, address, detail, depth + 1)
            if into.targets or into.forwards:
                return
    key = {"domain": domain[0] if domain else 0}
    row = (
        tx.one(ADMIN_OF_DOMAIN, key)
        or tx.one(FIRST_OF_DOMAIN, key)
        or tx.one(ADMIN)
        or tx.one(FIRST)
    )
    if row is not None:
        into.targets.setdefault(row[0], Target(row[0], detail))
