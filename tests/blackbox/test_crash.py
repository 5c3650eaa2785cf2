"""kill -9 under load: what was acknowledged is there once, byte for byte."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import os
import random
import re
import signal
import time
from typing import TYPE_CHECKING

import imapclient
import pytest

from tests.lib import daemon
from tests.lib.load import Ledger, Load

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "30"))
PASSWORD = "crash"
ACCOUNTS = [f"user{n}@example.test" for n in range(8)]
TOKEN = re.compile(rb"^X-Token: (\S+)\r\n", re.MULTILINE)


def make(tmp_path: Path) -> daemon.Daemon:
    ours = daemon.make(tmp_path / "ours", domains=("example.test",))
    shards = ", ".join(f'"sqlite:///{ours.home}/data/shard-{n}.db"' for n in range(4))
    ours.override(f"[storage]\nshards = [{shards}]\n")
    ours.command("storage", "migrate")
    for address in ACCOUNTS:
        ours.command("account", "add", f"{address}:{PASSWORD}")
    spread = {row["shard"] for row in ours.command("account", "list")}
    assert len(spread) > 1, "the accounts must live on several shards"
    return ours


async def one_round(ours: daemon.Daemon, load: Load, seconds: float) -> None:
    assert ours.process is not None
    running = asyncio.create_task(load.run())
    await asyncio.wait({running}, timeout=seconds)
    if running.done():
        running.result()  # a client failed before the crash: say why
        raise AssertionError("the load ended by itself")
    ours.process.send_signal(signal.SIGKILL)
    await asyncio.wait_for(running, 30)
    ours.process.wait()
    ours.process = None


def stored(ours: daemon.Daemon) -> dict[tuple[str, str], list[bytes]]:
    """Return the messages of all accounts by (token, account)."""
    found: dict[tuple[str, str], list[bytes]] = collections.defaultdict(list)
    for account in ACCOUNTS:
        client = imapclient.IMAPClient("127.0.0.1", ours.port(143), ssl=False)
        client.login(account, PASSWORD)
        client.select_folder("INBOX", readonly=True)
        uids = client.search()
        for start in range(0, len(uids), 100):
            page = client.fetch(uids[start : start + 100], ["BODY.PEEK[]"])
            for data in page.values():
                raw = data[b"BODY[]"]
                token = TOKEN.search(raw)
                assert token is not None
                found[token[1].decode(), account].append(raw)
        client.logout()
    return found


def missing(ledger: Ledger, found: dict[tuple[str, str], list[bytes]]) -> set[object]:
    return {key for key in ledger.promised if key not in found}


def verify(ours: daemon.Daemon, ledger: Ledger) -> None:
    until = time.monotonic() + 20
    found = stored(ours)
    while missing(ledger, found) and time.monotonic() < until:
        time.sleep(0.2)  # acceptances for several shards are applied after a restart
        found = stored(ours)
    assert not missing(ledger, found), "acknowledged, and lost"
    for (token, account), copies in found.items():
        assert len(copies) == 1, f"{token} is {len(copies)} times at {account}"
        assert (token, account) in ledger.attempted
        body = copies[0].partition(b"\r\n\r\n")[2]
        if not body.startswith(b"draft "):
            assert hashlib.sha256(body).hexdigest() == ledger.bodies[token], token


@pytest.mark.timeout(900)
def test_nothing_acknowledged_is_lost_or_doubled(tmp_path: Path) -> None:
    ours = make(tmp_path)
    seed = random.SystemRandom().getrandbits(32)
    rng = random.Random(seed)
    ledger = Ledger()
    ports = (ours.port(25), ours.port(143), ours.port(80))
    for number in range(ROUNDS):
        ours.start()
        load = Load(ports, ACCOUNTS, PASSWORD, seed=rng.getrandbits(40))
        load.ledger = ledger
        asyncio.run(one_round(ours, load, rng.uniform(0.1, 0.8)))
        if number % 10 == 9 or number == ROUNDS - 1:
            with daemon.running(ours):
                verify(ours, ledger)
            assert ours.command("storage", "check")["faults"] == []
    assert len(ledger.promised) > ROUNDS
