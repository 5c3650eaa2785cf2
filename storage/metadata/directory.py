"""Writing units of the directory: domains, accounts, credentials, keys.

Each raises the directory's version, which is what readers' caches are valid for,
and stamps the accounts that it changes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select, update

from mailserverd.core.errors import Kind, MailError
from storage.directory import (
    ACTIVE,
    CREATING,
    DELETED,
    DISABLED,
    LIVE,
    PASSWORD,
    PURGED,
    AccountRecord,
    AddAccount,
    AddDomain,
    DkimKey,
    DomainRecord,
    SetCredential,
)
from storage.metadata import directory_read as read
from storage.metadata.directory_tables import (
    ACCOUNT,
    ADDRESS,
    ALIAS_TARGET,
    CREDENTIAL,
    DKIM_KEY,
    DOMAIN,
    STATE,
)
from storage.metadata.sql import Sql, p

if TYPE_CHECKING:
    from storage.api import Tx

A, C, D, T = ACCOUNT.c, CREDENTIAL.c, DOMAIN.c, ALIAS_TARGET.c
BUMP = Sql(
    update(STATE)
    .where(STATE.c.id == 1)
    .values(version=STATE.c.version + 1)
    .returning(STATE.c.version)
)
FIRST_VERSION = Sql(insert(STATE).values(id=1, version=1))

INSERT_DOMAIN = Sql(
    insert(DOMAIN).returning(D.domain_id), ("name", "postmaster", "created")
)
DELETE_DOMAIN = Sql(delete(DOMAIN).where(D.domain_id == p("domain")))
SET_POSTMASTER = Sql(
    update(DOMAIN).where(D.name == p("domain")).values(postmaster=p("postmaster"))
)
ADDRESSES_IN = Sql(
    select(ADDRESS.c.local, ADDRESS.c.account_id).where(
        ADDRESS.c.domain_id == p("domain")
    )
)
INSERT_KEY = Sql(insert(DKIM_KEY))
DELETE_KEYS = Sql(delete(DKIM_KEY).where(DKIM_KEY.c.domain_id == p("domain")))
IN_DOMAIN = ADDRESS.c.domain_id == D.domain_id
DOMAINS = Sql(
    select(
        D.name,
        D.postmaster,
        D.created,
        select(func.count(ADDRESS.c.account_id)).where(IN_DOMAIN).scalar_subquery(),
        select(func.count()).select_from(ADDRESS).where(IN_DOMAIN).scalar_subquery(),
    ).order_by(D.name)
)

INSERT_ACCOUNT = Sql(
    insert(ACCOUNT).returning(A.account_id),
    ("address", "name", "shard", "state", "admin", "created", "version"),
)
STAMP = Sql(
    update(ACCOUNT).where(A.account_id == p("account")).values(version=p("to_version"))
)
SET_STATE = Sql(
    update(ACCOUNT)
    .where(A.account_id == p("account"))
    .values(state=p("to_state"), version=p("to_version"))
)
SET_SHARD = Sql(
    update(ACCOUNT)
    .where(A.account_id == p("account"))
    .values(shard=p("to_shard"), version=p("to_version"))
)
INSERT_AT = Sql(insert(ACCOUNT))
FILL = Sql(
    update(ACCOUNT)
    .where(A.account_id == p("account"))
    .values(address=p("to_address"), shard=p("to_shard"))
)
LAST_ACCOUNT = Sql(select(func.max(A.account_id)))
MAX_GAP = 100_000  # ids that restoring one account may use up
ACCOUNTS = Sql(
    select(*read.ACCOUNT_COLUMNS)
    .where(A.account_id > p("after"), A.state.in_(LIVE))
    .order_by(A.account_id)
    .limit(p("count"))
)
BY_SHARD = Sql(select(A.shard, func.count()).where(A.state.in_(LIVE)).group_by(A.shard))
UNFINISHED = Sql(
    select(*read.ACCOUNT_COLUMNS)
    .where(A.state.in_((CREATING, DELETED)))
    .order_by(A.account_id)
)
INSERT_ADDRESS = Sql(insert(ADDRESS))
DELETE_ADDRESSES = Sql(delete(ADDRESS).where(ADDRESS.c.account_id == p("account")))
DELETE_TARGET = Sql(delete(ALIAS_TARGET).where(T.target == p("target")))
DELETE_EMPTY_ALIASES = Sql(
    delete(ADDRESS).where(
        ADDRESS.c.account_id.is_(None),
        ~select(T.target)
        .where(T.domain_id == ADDRESS.c.domain_id, T.local == ADDRESS.c.local)
        .exists(),
    )
)
DELETE_TARGETS_IN = Sql(delete(ALIAS_TARGET).where(T.domain_id == p("domain")))
DELETE_ADDRESSES_IN = Sql(delete(ADDRESS).where(ADDRESS.c.domain_id == p("domain")))

INSERT_CREDENTIAL = Sql(
    insert(CREDENTIAL).returning(C.credential_id),
    ("account_id", "kind", "name", "hash", "version", "created"),
)
DELETE_CREDENTIAL = Sql(
    delete(CREDENTIAL).where(
        C.account_id == p("account"), C.kind == p("kind"), C.name == p("name")
    )
)
DELETE_CREDENTIALS = Sql(delete(CREDENTIAL).where(C.account_id == p("account")))
REHASH = Sql(
    update(CREDENTIAL)
    .where(C.credential_id == p("credential"), C.version == p("of_version"))
    .values(hash=p("to_hash"))
)


def bump(tx: Tx) -> int:
    """Raise the directory's version and return it."""
    row = tx.one(BUMP)
    if row is None:
        tx.run(FIRST_VERSION)
        return 1
    version: int = row[0]
    return version


def domain_id(tx: Tx, name: str) -> int:
    """Return the id of a domain served here; NOT_FOUND."""
    row = tx.one(read.DOMAIN_BY_NAME, {"name": name})
    if row is None:
        raise MailError(Kind.NOT_FOUND, f"domain {name} is not served here")
    found: int = row[0]
    return found


# --- domains -----------------------------------------------------------------


def add_domain(tx: Tx, _account: int, new: AddDomain) -> None:
    """Serve a domain and keep its keys; ALREADY_EXISTS."""
    if tx.one(read.DOMAIN_BY_NAME, {"name": new.name}):
        raise MailError(Kind.ALREADY_EXISTS, f"domain {new.name} exists")
    bump(tx)
    row = tx.one(
        INSERT_DOMAIN,
        {"name": new.name, "postmaster": new.postmaster, "created": int(tx.now)},
    )
    assert row is not None
    _insert_keys(tx, row[0], new.keys)


def remove_domain(tx: Tx, _account: int, args: tuple[str, bool]) -> tuple[int, ...]:
    """Stop serving a domain (name, force); returns the accounts this removed.

    NOT_EMPTY while accounts or aliases exist, unless forced: then they go too.
    """
    name, force = args
    domain = domain_id(tx, name)
    addresses = tx.all(ADDRESSES_IN, {"domain": domain})
    if addresses and not force:
        raise MailError(
            Kind.NOT_EMPTY,
            f"domain {name} has {len(addresses)} accounts and aliases: "
            "remove them first, or use --force",
        )
    accounts = tuple(sorted({r[1] for r in addresses if r[1] is not None}))
    for account in accounts:
        remove_account(tx, account, None)
    key = {"domain": domain}
    for local, _ in addresses:
        tx.run(DELETE_TARGET, {"target": f"{local}@{name}"})
    for statement in (
        DELETE_TARGETS_IN,
        DELETE_ADDRESSES_IN,
        DELETE_KEYS,
        DELETE_DOMAIN,
    ):
        tx.run(statement, key)
    tx.run(DELETE_EMPTY_ALIASES)
    bump(tx)
    return accounts


def list_domains(tx: Tx, _account: int, _args: None) -> tuple[DomainRecord, ...]:
    """Return all domains by name, with their keys and numbers of addresses."""
    return tuple(
        DomainRecord(
            name,
            postmaster,
            created,
            accounts,
            addresses - accounts,
            read.dkim_keys(tx, 0, name),
        )
        for name, postmaster, created, accounts, addresses in tx.all(DOMAINS)
    )


def set_postmaster(tx: Tx, _account: int, args: tuple[str, str]) -> None:
    """Send postmaster@ and abuse@ of a domain to an address ("" is the default)."""
    name, address = args
    domain_id(tx, name)
    tx.run(SET_POSTMASTER, {"domain": name, "postmaster": address})
    bump(tx)


def _insert_keys(tx: Tx, domain: int, keys: tuple[DkimKey, ...]) -> None:
    tx.many(
        INSERT_KEY,
        [
            {
                "domain_id": domain,
                "selector": key.selector,
                "algorithm": key.algorithm,
                "pem": key.pem,
                "txt": key.txt,
                "state": key.state,
                "created": int(tx.now),
            }
            for key in keys
        ],
    )


# --- accounts ----------------------------------------------------------------


def reserve_account(tx: Tx, _account: int, new: AddAccount) -> int:
    """Take an account id for an address that is free; NOT_FOUND, ALREADY_EXISTS.

    Nothing leads to the account before ``activate_account``, so that its shard can
    be made ready first; what a crash leaves between is cleared at the next start.
    """
    _free_address(tx, new)
    row = tx.one(
        INSERT_ACCOUNT,
        {
            "address": f"{new.local}@{new.domain}",
            "name": new.name,
            "shard": new.shard,
            "state": CREATING,
            "admin": int(new.admin),
            "created": int(tx.now),
            "version": bump(tx),
        },
    )
    assert row is not None
    account: int = row[0]
    return account


def activate_account(tx: Tx, account: int, new: AddAccount) -> AccountRecord:
    """Give a reserved account its address and password; ALREADY_EXISTS."""
    domain = _free_address(tx, new)
    tx.run(
        INSERT_ADDRESS,
        {
            "domain_id": domain,
            "local": new.local,
            "account_id": account,
            "created": int(tx.now),
        },
    )
    version = _set_state(tx, account, ACTIVE)
    _insert_credential(tx, account, SetCredential(account, new.hash), version)
    return read.account(tx, account, None)


def _free_address(tx: Tx, new: AddAccount) -> int:
    domain = domain_id(tx, new.domain)
    if tx.one(read.ADDRESS_BY_KEY, {"domain": domain, "local": new.local}):
        raise MailError(Kind.ALREADY_EXISTS, f"address {new.local}@{new.domain} exists")
    return domain


def remove_account(tx: Tx, account: int, _args: None) -> AccountRecord:
    """End an account at once: logins, addresses, its place in aliases.

    Its row stays, so that the id is never used again and its mail can be purged.
    """
    record = _existing(tx, account)
    tx.run(DELETE_CREDENTIALS, {"account": account})
    tx.run(DELETE_ADDRESSES, {"account": account})
    tx.run(DELETE_TARGET, {"target": record.address})
    tx.run(DELETE_EMPTY_ALIASES)
    _set_state(tx, account, DELETED)
    return record


def abandon_account(tx: Tx, account: int, _args: None) -> None:
    """Give up a reserved account, or say again that one was removed."""
    _set_state(tx, account, DELETED)


def unfinished(tx: Tx, _account: int, _args: None) -> tuple[AccountRecord, ...]:
    """Return accounts that are reserved, or removed and not yet purged."""
    return tuple(map(read.account_record, tx.all(UNFINISHED)))


def mark_purged(tx: Tx, account: int, _args: None) -> None:
    """Note that nothing of a removed account is left in its shard."""
    _set_state(tx, account, PURGED)


def set_state(tx: Tx, account: int, state: str) -> None:
    """Enable or disable logins (``active``, ``disabled``); mail still arrives."""
    _existing(tx, account)
    _set_state(tx, account, state)


def set_shard(tx: Tx, account: int, shard: bytes) -> None:
    """Say that an account lives on another shard (UUID): its rows are there."""
    _existing(tx, account)
    key = {"account": account, "to_shard": shard, "to_version": bump(tx)}
    tx.run(SET_SHARD, key)


def restore_account(tx: Tx, account: int, args: tuple[str, str, bytes]) -> None:
    """Make the row of an account whose mail is on a shard: (local, domain, shard).

    It has no password, and is disabled.  NOT_FOUND (domain) and ALREADY_EXISTS, the
    address or the id.
    """
    local, domain, shard = args
    row = tx.one(read.ACCOUNT_BY_ID, {"account": account})
    if row is not None and read.account_record(row).address:
        raise MailError(Kind.ALREADY_EXISTS, f"account {account} exists")
    domain_key = _free_address(tx, AddAccount(local, domain, shard, ""))
    version = bump(tx)
    if row is None:
        _use_up(tx, account, version)
    tx.run(
        FILL,
        {"account": account, "to_address": f"{local}@{domain}", "to_shard": shard},
    )
    tx.run(
        INSERT_ADDRESS,
        {
            "domain_id": domain_key,
            "local": local,
            "account_id": account,
            "created": int(tx.now),
        },
    )
    _set_state(tx, account, DISABLED)


def _use_up(tx: Tx, account: int, version: int) -> None:
    """Make a row, without an address, for an id and for those before it.

    Ids are given out by the database, which so goes on behind it.
    """
    row = {
        "address": "",
        "name": "",
        "shard": b"",
        "state": PURGED,
        "admin": 0,
        "created": int(tx.now),
        "version": version,
    }
    for _ in range(MAX_GAP):
        given = tx.one(INSERT_ACCOUNT, row)
        if given is not None and given[0] >= account:
            break
    else:
        raise MailError(Kind.LIMIT, f"account {account} is too far from the last one")
    if given[0] > account:
        tx.run(INSERT_AT, {**row, "account_id": account})


def last_account(tx: Tx, _account: int, _args: None) -> int:
    """Return the greatest account id that was ever given out; 0 before any."""
    row = tx.one(LAST_ACCOUNT)
    return (row[0] if row else 0) or 0


def list_accounts(
    tx: Tx, _account: int, args: tuple[int, int]
) -> tuple[AccountRecord, ...]:
    """Return a page (after id, limit) of accounts by id."""
    after, limit = args
    rows = tx.all(ACCOUNTS, {"after": after, "count": limit})
    return tuple(map(read.account_record, rows))


def count_by_shard(tx: Tx, _account: int, _args: None) -> dict[bytes, int]:
    """Return how many accounts live on each shard, by UUID."""
    return {row[0]: row[1] for row in tx.all(BY_SHARD)}


def _existing(tx: Tx, account: int) -> AccountRecord:
    record = read.account(tx, account, None)
    if record.state not in LIVE:
        raise MailError(Kind.NOT_FOUND, "no such account")
    return record


def _set_state(tx: Tx, account: int, state: str) -> int:
    version = bump(tx)
    tx.run(SET_STATE, {"account": account, "to_state": state, "to_version": version})
    return version


# --- credentials -------------------------------------------------------------


def set_credential(tx: Tx, account: int, new: SetCredential) -> int:
    """Set the password, or add an app password (ALREADY_EXISTS); returns its id.

    A replaced password ends every session and remembered login it opened.
    """
    _existing(tx, account)
    version = bump(tx)
    key = {"account": account, "kind": new.kind, "name": new.name}
    if new.kind == PASSWORD:
        tx.run(DELETE_CREDENTIAL, key)
    elif any(
        row[1:3] == (new.kind, new.name)
        for row in tx.all(read.CREDENTIALS, {"account": account})
    ):
        raise MailError(Kind.ALREADY_EXISTS, f"app password {new.name} exists")
    tx.run(STAMP, {"account": account, "to_version": version})
    return _insert_credential(tx, account, new, version)


def remove_credential(tx: Tx, account: int, args: tuple[str, str]) -> None:
    """Remove a credential (kind, name); NOT_FOUND."""
    kind, name = args
    _existing(tx, account)
    key = {"account": account, "kind": kind, "name": name}
    if not tx.run(DELETE_CREDENTIAL, key):
        raise MailError(Kind.NOT_FOUND, f"no app password {name}")
    tx.run(STAMP, {"account": account, "to_version": bump(tx)})


def rehash(tx: Tx, _account: int, args: tuple[int, int, str]) -> None:
    """Keep (credential, its version, new hash) of the same password."""
    credential, version, encoded = args
    tx.run(
        REHASH, {"credential": credential, "of_version": version, "to_hash": encoded}
    )


def _insert_credential(tx: Tx, account: int, new: SetCredential, version: int) -> int:
    row = tx.one(
        INSERT_CREDENTIAL,
        {
            "account_id": account,
            "kind": new.kind,
            "name": new.name,
            "hash": new.hash,
            "version": version,
            "created": int(tx.now),
        },
    )
    assert row is not None
    found: int = row[0]
    return found
