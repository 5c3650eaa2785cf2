"""Units for aliases: one address that leads to others, here or elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select

from mailserverd.core.errors import Kind, MailError
from storage.directory import AddAlias, AliasRecord
from storage.metadata.directory import INSERT_ADDRESS, bump, domain_id
from storage.metadata.directory_read import ADDRESS_BY_KEY, DOMAIN_BY_NAME, TARGETS
from storage.metadata.directory_tables import ADDRESS, ALIAS_TARGET, DOMAIN
from storage.metadata.sql import Sql, p

if TYPE_CHECKING:
    from storage.api import Tx

MAX_TARGETS = 200
MAX_WALK = 1000  # addresses looked at when searching for a cycle

T = ALIAS_TARGET.c
INSERT_TARGET = Sql(insert(ALIAS_TARGET))
DELETE_TARGETS = Sql(
    delete(ALIAS_TARGET).where(T.domain_id == p("domain"), T.local == p("local"))
)
DELETE_ALIAS = Sql(
    delete(ADDRESS).where(
        ADDRESS.c.domain_id == p("domain"), ADDRESS.c.local == p("local")
    )
)
ALL_TARGETS = Sql(
    select(T.local, DOMAIN.c.name, T.target, T.send_as)
    .join(DOMAIN, DOMAIN.c.domain_id == T.domain_id)
    .order_by(DOMAIN.c.name, T.local, T.position)
)


def add_alias(tx: Tx, _account: int, new: AddAlias) -> None:
    """Make an alias; ALREADY_EXISTS, NOT_FOUND (domain), INVALID (targets, cycle)."""
    address = f"{new.local}@{new.domain}"
    domain = domain_id(tx, new.domain)
    if not 0 < len(new.targets) <= MAX_TARGETS:
        raise MailError(Kind.INVALID, f"an alias has 1 to {MAX_TARGETS} targets")
    key = {"domain": domain, "local": new.local}
    found = tx.one(ADDRESS_BY_KEY, key)
    if found is not None and (found[0] is not None or not new.replace):
        raise MailError(Kind.ALREADY_EXISTS, f"address {address} exists")
    if found is None:
        tx.run(
            INSERT_ADDRESS,
            {
                "domain_id": domain,
                "local": new.local,
                "account_id": None,
                "created": int(tx.now),
            },
        )
    tx.run(DELETE_TARGETS, key)
    _refuse_cycle(tx, address, new.targets)
    tx.many(
        INSERT_TARGET,
        [
            {
                "domain_id": domain,
                "local": new.local,
                "position": position,
                "target": target,
                "send_as": int(new.send_as),
            }
            for position, target in enumerate(dict.fromkeys(new.targets))
        ],
    )
    bump(tx)


def remove_alias(tx: Tx, _account: int, address: tuple[str, str]) -> None:
    """Remove an alias (local, domain); NOT_FOUND."""
    local, name = address
    key = {"domain": domain_id(tx, name), "local": local}
    found = tx.one(ADDRESS_BY_KEY, key)
    if found is None or found[0] is not None:
        raise MailError(Kind.NOT_FOUND, f"no alias {local}@{name}")
    tx.run(DELETE_TARGETS, key)
    tx.run(DELETE_ALIAS, key)
    bump(tx)


def list_aliases(tx: Tx, _account: int, domain: str) -> tuple[AliasRecord, ...]:
    """Return all aliases of a domain ("" of all), by address."""
    found: dict[str, tuple[list[str], bool]] = {}
    for local, name, target, send_as in tx.all(ALL_TARGETS):
        if domain in {"", name}:
            alias = found.setdefault(f"{local}@{name}", ([], bool(send_as)))
            alias[0].append(target)
    return tuple(AliasRecord(a, tuple(t), s) for a, (t, s) in found.items())


def _refuse_cycle(tx: Tx, address: str, targets: tuple[str, ...]) -> None:
    """INVALID when an alias would lead back to itself."""
    waiting, seen = list(targets), set(targets)
    while waiting:
        if address in seen:
            raise MailError(Kind.INVALID, f"alias {address} would lead to itself")
        if len(seen) > MAX_WALK:
            raise MailError(Kind.INVALID, f"alias {address} leads to too many")
        local, _, name = waiting.pop().rpartition("@")
        row = tx.one(DOMAIN_BY_NAME, {"name": name})
        if row is not None:
            found = tx.all(TARGETS, {"domain": row[0], "local": local})
            fresh = {target for target, _ in found} - seen
            seen |= fresh
            waiting.extend(fresh)
