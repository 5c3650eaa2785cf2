"""Instances on four shards: made quickly, and opened beside no daemon."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING

from mailserverd.app.graph import Graph, build
from mailserverd.app.stores import data_lock, open_stores
from mailserverd.core.ports import SystemClock
from mailserverd.core.types import system
from mailserverd.settings import read
from storage.model import KEYWORD_SHIFT
from tests.lib import daemon
from tests.lib.databases import SQLITE, Engine

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Iterable

SHARDS = 4
TOKEN = re.compile(rb"^X-Token: *(\S+)\r\n", re.MULTILINE)


def make(
    home: pathlib.Path,
    addresses: Iterable[str],
    password: str,
    settings: str = "",
    engine: Engine = SQLITE,
) -> daemon.Daemon:
    """Make an instance whose accounts are spread over four shards."""
    accounts = [f"{address}:{password}" for address in addresses]
    ours = daemon.make(home, *accounts, engine=engine, shards=SHARDS)
    ours.override(settings)
    spread = {row["shard"] for row in ours.command("account", "list")}
    assert len(spread) > 1, "the accounts must live on several shards"
    return ours


@contextlib.asynccontextmanager
async def opened(config: str) -> AsyncIterator[Graph]:
    """Open an instance's data as the daemon does when it starts."""
    settings, clock = read(config), SystemClock()
    with data_lock(settings):
        stores = await open_stores(settings, clock)
        graph = build(settings, stores, clock)
        try:
            await graph.recover()
            yield graph
        finally:
            await graph.close()
            await stores.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """One message in one mailbox."""

    mailbox: str
    raw: bytes
    system: int  # SEEN FLAGGED ... of storage.model


async def contents(graph: Graph) -> dict[tuple[str, str], list[Kept]]:
    """Return every message of every account by (token, address)."""
    found: dict[tuple[str, str], list[Kept]] = {}
    for row in await graph.accounts.account_list():
        account = await graph.stores.directory.account_by_address(row["address"])
        assert account is not None
        access = system(account.account_id)
        listed = await graph.mailboxes.list(access)
        for box in listed.mailboxes:
            view = await graph.messages.view(access, box.mailbox_id)
            for email, bits in zip(view.email_ids, view.flags, strict=True):
                raw = await graph.messages.read(access, email)
                token = TOKEN.search(raw)
                assert token is not None, raw[:500]
                kept = Kept(box.name, raw, bits & ((1 << KEYWORD_SHIFT) - 1))
                key = token[1].decode(), row["address"]
                found.setdefault(key, []).append(kept)
    return found
