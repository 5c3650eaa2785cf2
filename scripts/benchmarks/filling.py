"""Filling accounts through the storage units, while no daemon runs.

The rows are written by ``storage.metadata.deliver.add_email`` as in a delivery, the
octets go into segments; only the envelope, policy and one transaction per message are
left out.  A batch is one transaction that bears a key, so an interrupted run goes on
where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from auth.people import addresses, passwords
from mailserverd.app.accounts import hasher
from mailserverd.app.offload import ThreadOffload
from mailserverd.app.stores import data_lock, make_missing, open_stores
from mailserverd.core import log
from mailserverd.core.ports import SystemClock
from mailserverd.core.types import system
from mailserverd.settings import read
from scripts.benchmarks import mailboxes
from storage.directory import AddAccount, AddDomain
from storage.metadata import directory
from storage.metadata import mailboxes as boxes_units
from storage.metadata.deliver import SEEN_BEFORE, add_email, prepare_account
from storage.metadata.sql import heavy
from storage.model import AddEmail, NewAccount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mailserverd.app.stores import Stores
    from mailserverd.settings import Settings
    from storage.api import Tx

    Told = Callable[[int], None]  # of how many more there are

ROOT = pathlib.Path(__file__).resolve().parents[2]
ACCOUNTS_AT_ONCE = 250


@dataclasses.dataclass(slots=True)
class Filler:
    """Open stores of an instance that no daemon serves."""

    settings: Settings
    stores: Stores
    offload: ThreadOffload
    password: str

    # --- accounts -----------------------------------------------------------------

    async def accounts(self, names: list[str], progress: Told) -> dict[str, int]:
        """Return the ids of accounts, making those that are missing.

        All get the same password hash: hashing it for each would take minutes.
        """
        found = self.stores.directory
        ids: dict[str, int] = {}
        fresh = []
        for name in names:
            record = await found.account_by_address(name)
            if record is None:
                fresh.append(name)
            else:
                ids[name] = record.account_id
                progress(1)
        if fresh:
            await self._domains({name.rpartition("@")[2] for name in fresh})
            prepared = passwords.prepare(self.password.encode())
            encoded = hasher(self.settings).hash(prepared)
            for start in range(0, len(fresh), ACCOUNTS_AT_ONCE):
                some = fresh[start : start + ACCOUNTS_AT_ONCE]
                ids |= await self._make(some, encoded)
                progress(len(some))
        return ids

    async def _domains(self, names: set[str]) -> None:
        for name in sorted(names):
            if not await self.stores.directory.is_local(name):
                add = AddDomain(name)
                await self.stores.directory.write(directory.add_domain, 0, add)

    async def _make(self, names: list[str], encoded: str) -> dict[str, int]:
        shards = self.stores.directory.shards
        taken = await self.stores.directory.read(directory.count_by_shard, 0, None)
        counts = {uuid: taken.get(uuid, 0) for uuid in shards}
        new = []
        for name in names:
            shard = min(counts, key=counts.__getitem__)
            counts[shard] += 1
            local, domain = addresses.new_address(name)
            new.append(AddAccount(local, domain, shard, encoded, "", False))
        write = self.stores.directory.write
        ids = await write(reserve_many, 0, tuple(new))
        groups: dict[int, list[tuple[int, str]]] = {}
        for account, name in zip(ids, names, strict=True):
            shard_number = self.stores.directory.shard_of(account)
            groups.setdefault(shard_number, []).append((account, name))
        for shard_number, some in groups.items():
            database = self.stores.shard_dbs[shard_number]
            await database.write(prepare_many, 0, tuple(some))
        await write(activate_many, 0, tuple(zip(ids, new, strict=True)))
        return dict(zip(names, ids, strict=True))

    # --- mail ---------------------------------------------------------------------

    async def folders(self, account: int, count: int) -> list[int]:
        """Return the ids of an account's mailboxes, making those that are missing."""
        shard = self.stores.shards
        wanted = mailboxes.folder_paths(count)
        access = system(account)
        have = await shard.read(access, boxes_units.list_all, None)
        known = {box.path: box.mailbox_id for box in have.mailboxes}
        missing = [path for path in wanted if path not in known]
        if missing:
            known |= await shard.write(access, make_folders, tuple(missing))
        return [known[path] for path in wanted]

    async def fill(
        self,
        account: int,
        plan: mailboxes.Plan,
        pairs: list[tuple[mailboxes.Template, mailboxes.Template]],
        progress: Told,
    ) -> None:
        """Fill one account as planned; what is there already is passed over."""
        folders = await self.folders(account, plan.folders)
        access = system(account)
        storing: asyncio.Task[None] | None = None
        for number in range(plan.batches):
            key = _key(plan, number)
            if await self.stores.shards.read(access, has_batch, key):
                progress(min(mailboxes.BATCH, plan.messages - number * mailboxes.BATCH))
                continue
            made = list(mailboxes.batch(plan, pairs, number))
            refs = await asyncio.gather(
                *(self.stores.blobs.put(one.raw) for one in made)
            )
            adds = tuple(
                AddEmail(
                    dataclasses.replace(one.email, blob=ref),
                    one.received_at,
                    (folders[one.folder],),
                    flags=one.flags,
                )
                for one, ref in zip(made, refs, strict=True)
            )
            if storing is not None:
                await storing
            storing = asyncio.create_task(self._store(account, (key, adds), progress))
        if storing is not None:
            await storing

    async def _store(
        self, account: int, args: tuple[bytes, tuple[AddEmail, ...]], progress: Told
    ) -> None:
        await self.stores.shards.write(system(account), add_batch, args)
        progress(len(args[1]))


def _key(plan: mailboxes.Plan, number: int) -> bytes:
    name = f"loadgen/{plan.seed}/{plan.folders}/{plan.messages}/{number}".encode()
    return hashlib.blake2b(name, digest_size=16).digest()


@contextlib.asynccontextmanager
async def opened(settings: Settings, password: str) -> AsyncIterator[Filler]:
    """Hold the data directory and open what is in it, made where it is missing."""
    clock = SystemClock()
    log.configure("warning", "text")
    with data_lock(settings):
        await make_missing(settings, clock)
        stores = await open_stores(settings, clock)
        offload = ThreadOffload(2, "loadgen")
        try:
            yield Filler(settings, stores, offload, password)
        finally:
            await stores.close()
            offload.close()


# --- units ------------------------------------------------------------------------


def has_batch(tx: Tx, account: int, key: bytes) -> bool:
    """Return whether a batch is there."""
    return tx.one(SEEN_BEFORE, {"a": account, "key": key}) is not None


@heavy
def add_batch(tx: Tx, account: int, args: tuple[bytes, tuple[AddEmail, ...]]) -> None:
    """Add the messages of a batch, once."""
    key, adds = args
    if has_batch(tx, account, key):
        return
    for number, add in enumerate(adds):
        add_email(
            tx, account, add if number else dataclasses.replace(add, acceptance=key)
        )


@heavy
def make_folders(tx: Tx, account: int, paths: tuple[str, ...]) -> dict[str, int]:
    """Make mailboxes by path, and their parents; returns their ids."""
    return {
        path: boxes_units.create_path(tx, account, (path, ""))[0].mailbox_id
        for path in paths
    }


@heavy
def reserve_many(tx: Tx, _account: int, new: tuple[AddAccount, ...]) -> list[int]:
    """Take ids for many accounts."""
    return [directory.reserve_account(tx, 0, one) for one in new]


@heavy
def prepare_many(tx: Tx, _account: int, some: tuple[tuple[int, str], ...]) -> None:
    """Make rows and mailboxes of many accounts."""
    for account, address in some:
        prepare_account(tx, account, NewAccount(address, "", 0))


@heavy
def activate_many(
    tx: Tx, _account: int, some: tuple[tuple[int, AddAccount], ...]
) -> None:
    """Give many accounts their addresses and passwords."""
    for account, new in some:
        directory.activate_account(tx, account, new)


# --- the command --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be there: every address gets ``messages`` in ``folders``."""

    home: pathlib.Path
    names: list[str]
    messages: int
    folders: int
    seed: int
    password: str


def addresses_of(address: str, accounts: int) -> list[str]:
    """Return one address, or those of numbered accounts in its domain."""
    domain = address.rpartition("@")[2]
    if not accounts:
        return [address]
    return [f"user{number}@{domain}" for number in range(accounts)]


def make_instance(home: pathlib.Path, shards: int, base: int) -> int:
    """Make an instance with ``init`` unless there is one; returns its port base."""
    note = home / "port-base"
    if note.exists():
        return int(note.read_text())
    command = [sys.executable, "-m", "mailserverd", "init", str(home)]
    command += ["--domain", "example.test", "--hostname", "mail.example.test"]
    command += ["--port-base", str(base)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    if shards > 1:
        urls = [f"sqlite:///{home}/data/shard-{number}.db" for number in range(shards)]
        text = f"[storage]\nshards = {json.dumps(urls)}\n"
        (home / "conf.d" / "40-shards.toml").write_text(text)
    note.write_text(str(base))
    return base


async def run(wanted: Wanted) -> str:
    """Fill an instance, showing progress; returns what was done in one line."""
    started = time.monotonic()
    settings = read(str(wanted.home / "mailserverd.toml"))
    total = wanted.messages * len(wanted.names)
    async with opened(settings, wanted.password) as filler:
        with progress_bar() as bar:
            made = bar.add_task("accounts", total=len(wanted.names))
            ids = await filler.accounts(
                wanted.names, lambda count: bar.advance(made, count)
            )
            task = bar.add_task("messages", total=total)
            pairs = await mailboxes.templates(wanted.seed, filler.offload)
            for name, account in ids.items():
                plan = mailboxes.Plan(
                    wanted.messages, wanted.folders, wanted.seed, name
                )
                await filler.fill(
                    account, plan, pairs, lambda count: bar.advance(task, count)
                )
    seconds = time.monotonic() - started
    return (
        f"{total} messages in {len(wanted.names)} accounts: "
        f"{seconds:.1f} s, {total / seconds:.0f} messages/s"
    )


def progress_bar() -> Progress:
    """Return a bar with numbers, rate and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
