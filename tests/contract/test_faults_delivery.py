"""Mail that arrives on engines that fail: what was acknowledged is there, once.

Every attempt to deliver has a token of its own.  A sender that is told of a failure
comes again with another one, as SMTP has it: what counts is that no attempt arrives
twice, and that one which was acknowledged arrives with everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.services import acceptances, receive
from storage.model import Flags
from tests.lib.attempts import PEOPLE, ROLES, Ledger, message, tokens
from tests.lib.failing import MODES, Faults
from tests.lib.mailhost import MailHost, mail_host
from tests.lib.smtpsite import smtp_site

if TYPE_CHECKING:
    import pathlib


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses between tries be short."""
    monkeypatch.setattr(acceptances, "PATIENCE", 0.2)
    monkeypatch.setattr(acceptances, "AGAIN", 0.0)
    monkeypatch.setattr(receive, "QUOTA_LIMIT", 0.2)


def recipients(number: int) -> tuple[str, ...]:
    """Return one, two (mostly of two shards) or all."""
    first = number % len(PEOPLE)
    return ((PEOPLE[first],), (PEOPLE[first], PEOPLE[first - 1]), PEOPLE)[number % 3]


def run(tmp_path: pathlib.Path, work: Any, **how: Any) -> None:
    """Run ``work(host, faults)`` on two shards."""

    async def whole() -> None:
        faults = Faults()
        async with (
            asyncio.timeout(20),
            mail_host(tmp_path, *PEOPLE, shards=2, wrap=faults.wrap, **how) as host,
        ):
            assert len({host.shards.shard_of(a) for a in range(1, 5)}) == 2
            await work(host, faults)

    asyncio.run(whole())


# --- the way in ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("role", [*ROLES, "all"])
def test_what_is_acknowledged_arrives_once_with_everybody(
    tmp_path: pathlib.Path, role: str, mode: str
) -> None:
    async def work(host: MailHost, faults: Faults) -> None:
        ledger = Ledger()

        async def send(token: str, number: int) -> bool:
            to = recipients(number)
            return await ledger.attempt(host.send(message(token), *to), token, *to)

        await send("first", 2)
        faults.set(mode, *([] if role == "all" else [role]))
        await asyncio.gather(*(send(f"fault{n}", n) for n in range(18)))
        assert faults.failed or role == "directory"  # whose answers are remembered
        faults.mend()
        await host.acceptances.settle()
        while await host.acceptances.catch_up(host.deliver):
            pass
        assert not await host.queue.waiting_targets()
        assert all([await send(f"later{n}", n) for n in range(3)])
        await host.acceptances.close()
        await ledger.check(host)
        if mode == "slowly":
            assert len(ledger.done) == 22
        if mode == "always" and role in {"blobs", "all"}:
            assert len(ledger.done) == 4

    run(tmp_path, work)


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.STORAGE_FULL])
def test_one_shard_that_fails_holds_up_its_own_mail_alone(
    place: pathlib.Path, kind: Kind
) -> None:
    async def work(host: MailHost, faults: Faults) -> None:
        ids = {a: (await host.account(a)).account for a in PEOPLE}
        theirs = [a for a in PEOPLE if host.shards.shard_of(ids[a]) == 1]
        ours = [a for a in PEOPLE if a not in theirs]
        ledger = Ledger()
        faults.set("always", "shard-1", kind=kind)
        for name, to in (("alone", theirs[:1]), ("ours", ours), ("all", PEOPLE)):
            sent = host.send(message(name), *to)
            assert await ledger.attempt(sent, name, *to) is (name != "alone")
        faults.mend()
        assert "all" not in await tokens(host, theirs[0])
        assert await host.acceptances.catch_up(host.deliver) == 0
        await ledger.check(host)
        assert "alone" not in await tokens(host, theirs[0])

    run(place, work)


def test_a_shard_without_an_answer_does_not_hold_up_rcpt(
    tmp_path: pathlib.Path,
) -> None:
    """How full its mailboxes are is then not known; everybody else notices nothing."""

    async def work(host: MailHost, faults: Faults) -> None:
        faults.set("slowly", "shard-1", only=("read",))
        faults["shard-1"].delay = 60.0
        began = time.monotonic()
        for address in PEOPLE:
            await host.receive.check_recipient(address)
        with pytest.raises(MailError) as caught:
            await host.receive.check_recipient("unknown@example.org")
        assert caught.value.kind is Kind.NO_SUCH_USER
        assert faults.failed
        assert time.monotonic() - began < 3

    run(tmp_path, work)


def test_a_target_without_an_answer_does_not_hold_up_the_sender(
    tmp_path: pathlib.Path,
) -> None:
    async def work(host: MailHost, faults: Faults) -> None:
        ledger = Ledger()
        faults.set("slowly", "shard-1", only=("write",))
        faults["shard-1"].delay = 20.0
        began = time.monotonic()
        await ledger.attempt(host.send(message("all"), *PEOPLE), "all", *PEOPLE)
        assert "all" in ledger.done
        assert time.monotonic() - began < 2
        faults.mend()
        for task in host.acceptances._applying:  # the process ends
            task.cancel()
        await asyncio.wait(host.acceptances._applying)
        assert await host.acceptances.catch_up(host.deliver) == 0
        await ledger.check(host)

    run(tmp_path, work)


@pytest.mark.parametrize("mode", MODES)
def test_an_append_on_a_failing_engine_is_stored_or_refused(
    tmp_path: pathlib.Path, mode: str
) -> None:
    async def work(host: MailHost, faults: Faults) -> None:
        ledger = Ledger()
        access = await host.account(PEOPLE[0])
        for number in range(24):
            faults.set(mode, ("shard-0", "blobs")[number % 2])
            token = f"append{number}"
            put = host.receive.store_message(
                access, message(token), (1,), Flags(), 1_800_000_000
            )
            done = await ledger.attempt(put, token, PEOPLE[0])
            assert done is (mode == "slowly") or mode == "sometimes"
            faults.mend()
        await ledger.check(host)

    run(tmp_path, work)


# --- over SMTP ----------------------------------------------------------------------


async def dialog(port: int, token: str, *to: str) -> list[str]:
    """Send one message; return the replies to MAIL, RCPTs, DATA and its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def say(line: bytes) -> str:
        writer.write(line)
        while (reply := (await reader.readline()).decode())[3:4] == "-":
            pass
        return reply

    found = []
    with contextlib.closing(writer):
        await say(b"")
        await say(b"EHLO client.example.net\r\n")
        found.append(await say(b"MAIL FROM:<s@example.net>\r\n"))
        found += [await say(f"RCPT TO:<{one}>\r\n".encode()) for one in to]
        if any(reply.startswith("2") for reply in found[1:]):
            found.append(await say(b"DATA\r\n"))
            found.append(await say(message(token) + b".\r\n"))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_smtp_says_so_in_its_own_terms(tmp_path: pathlib.Path, mode: str) -> None:
    """2xx or 4xx for those who exist, and 5xx only for who does not."""

    async def whole() -> None:
        faults, ledger = Faults(), Ledger()
        how = {"wrap": faults.wrap}
        async with (
            asyncio.timeout(20),
            smtp_site(tmp_path, *PEOPLE, shards=2, host=how) as site,
        ):
            port = site.addresses["mx"][1]
            for number, role in enumerate(ROLES * 2):
                faults.set(mode, role)
                token, to = f"smtp{number}", recipients(number)
                replies = await dialog(port, token, *to, "unknown@example.org")
                faults.mend()
                *known, unknown = replies[1 : len(to) + 2]
                taken = [a for a, r in zip(to, known, strict=True) if r[0] == "2"]
                ledger.tried[token] = tuple(taken)
                assert {r[0] for r in known} <= {"2", "4"}, replies
                assert unknown[0] in ("45" if role == "directory" else "5"), replies
                if taken:
                    assert replies[-1][0] in "24", replies
                    if replies[-1][0] == "2":
                        ledger.done.add(token)
            while await site.host.acceptances.catch_up(site.host.deliver):
                pass
            await ledger.check(site.host)
            if mode == "slowly":
                assert len(ledger.done) == len(ledger.tried)

    asyncio.run(whole())
