"""Builds what the account, alias and domain commands need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auth.people.passwords import Cost, Passwords
from mailserverd.services.accounts import Accounts, Tools

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailserverd.app.stores import Stores
    from mailserverd.core.ports import Clock, Offload
    from mailserverd.settings import Settings


def hasher(settings: Settings) -> Passwords:
    """Return the password hasher with the configured cost."""
    return Passwords(Cost(memory=settings.limits.password_memory // 1024))


def accounts(
    settings: Settings,
    stores: Stores,
    offload: Offload,
    clock: Clock,
    forget: Callable[[int], Awaitable[None]],
) -> Accounts:
    """Return the use cases of people and domains."""
    tools = Tools(
        hasher(settings),
        offload,
        clock,
        settings.server.hostname,
        settings.dns.servers,
        forget,
    )
    return Accounts(stores.directory, stores.shards, tools)
