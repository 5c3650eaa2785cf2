"""Targets that are down, slow or damaged hold up neither senders nor each other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.services import acceptances
from storage.metadata.purge import purge_account
from tests.lib.mailhost import MailHost, mail_host

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable, Iterator

    from storage.model import BlobRef

PEOPLE = [f"u{n}@example.org" for n in range(6)]  # two on each of three shards
PATIENCE = 0.2


def message(number: int) -> bytes:
    return b"From: s@example.net\r\nMessage-ID: <%d@x>\r\n\r\nm%d\r\n" % (
        number,
        number,
    )


def run(path: pathlib.Path, steps: Callable[[MailHost], Awaitable[None]]) -> None:
    async def main() -> None:
        async with mail_host(path, *PEOPLE, shards=3) as host:
            await steps(host)

    asyncio.run(main())


@contextlib.contextmanager
def writes(host: MailHost, shard: int, way: Any) -> Iterator[None]:
    """Let ``way(write, *args)`` do the writing of a shard."""
    database: Any = host.databases[shard]
    write = database.write
    database.write = lambda *args: way(write, *args)
    try:
        yield
    finally:
        database.write = write


async def down(*_: object) -> None:
    raise MailError(Kind.UNAVAILABLE, "down")


async def on(host: MailHost, shard: int) -> list[str]:
    """Return who lives on a shard."""
    found = [(one, await host.account(one)) for one in PEOPLE]
    return [a for a, access in found if host.shards.shard_of(access.account) == shard]


async def counts(host: MailHost) -> list[int]:
    return [len(await host.mail(one)) for one in PEOPLE]


async def waiting(host: MailHost) -> int:
    await host.acceptances.settle()
    return (await host.queue.stats()).acceptances


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptances, "PATIENCE", PATIENCE)


def test_a_slow_target_does_not_hold_up_the_sender(tmp_path: pathlib.Path) -> None:
    """It gets its part when it is done; those that come meanwhile do not wait."""

    async def steps(host: MailHost) -> None:
        go = asyncio.Event()
        asked = 0

        async def slowly(write: Any, *args: Any) -> Any:
            nonlocal asked
            asked += 1
            await go.wait()
            return await write(*args)

        with writes(host, 0, slowly):
            began = time.monotonic()
            await host.send(message(1), *PEOPLE)
            assert time.monotonic() - began < PATIENCE * 5
            for number in range(2, 6):
                await host.send(message(number), *PEOPLE)
            assert asked == 1  # a shard that hangs collects no crowd
            others = [one for one in PEOPLE if one not in await on(host, 0)]
            assert [len(await host.mail(one)) for one in others] == [5] * 4
            go.set()
            late = (await on(host, 0))[0]
            await until(lambda: has(host, late, 1))
        assert await host.acceptances.catch_up(host.deliver) == 0
        assert await counts(host) == [5] * 6
        assert await waiting(host) == 0

    run(tmp_path, steps)


async def has(host: MailHost, address: str, count: int) -> bool:
    return len(await host.mail(address)) == count


def test_a_target_that_is_down_does_not_hold_up_another(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptances, "PAGE", 2)

    async def steps(host: MailHost) -> None:
        with writes(host, 0, down):
            with writes(host, 1, down):
                for number in range(9):
                    await host.send(message(number), *PEOPLE)
            assert await host.acceptances.catch_up(host.deliver) == acceptances.TRIES
            lost = await on(host, 0)
            assert await counts(host) == [0 if one in lost else 9 for one in PEOPLE]
        while await waiting(host):
            await host.acceptances.catch_up(host.deliver)
        assert await counts(host) == [9] * 6
        bodies = [raw[-5:-2] for raw in await host.mail(lost[0])]
        assert sorted(bodies) == [b"\nm%d" % n for n in range(9)]

    run(tmp_path, steps)


def test_parts_that_cannot_be_read_hold_up_no_others(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(host: MailHost) -> None:
        with writes(host, 0, down):
            for number in range(6):
                await host.send(message(number), *PEOPLE)
        assert await waiting(host) == 6
        damaged: list[BlobRef] = [
            part.blob for part in (await host.queue.pending(1 << 40))[:4]
        ]
        read = host.blobs.read

        async def reading(ref: BlobRef, *args: int) -> bytes:
            if ref in damaged:
                raise MailError(Kind.UNAVAILABLE, "damaged")
            return await read(ref, *args)

        monkeypatch.setattr(host.blobs, "read", reading)
        assert await host.acceptances.catch_up(host.deliver) == 4
        monkeypatch.undo()
        assert await waiting(host) == 4
        for one in await on(host, 0):
            assert await has(host, one, 2)
        assert await host.acceptances.catch_up(host.deliver) == 0
        assert await counts(host) == [6] * 6

    run(tmp_path, steps)


@pytest.mark.parametrize("recipients", [1, 2])
def test_an_account_that_its_shard_lacks_loses_nothing(
    tmp_path: pathlib.Path, recipients: int
) -> None:
    """It is no reason to bounce, nor to leave a recipient out: it is deferred."""

    async def steps(host: MailHost) -> None:
        (lost, other) = await on(host, 0)
        account = (await host.account(lost)).account
        await host.databases[0].write(purge_account, account, 500)
        await host.receive.check_recipient(lost)
        to = [lost, other][:recipients]
        with pytest.raises(MailError) as caught:
            await host.send(message(1), *to)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert await has(host, other, 0)
        elsewhere = (await on(host, 1))[0]
        await host.send(message(2), *to, elsewhere)  # several targets: kept for it
        assert await has(host, elsewhere, 1)
        assert await waiting(host) == 1

    run(tmp_path, steps)


def test_an_account_removed_after_its_recipient_was_taken(
    tmp_path: pathlib.Path,
) -> None:
    """The others on its shard get the message."""

    async def steps(host: MailHost) -> None:
        (gone, other) = await on(host, 0)
        remove = host.accounts.account_remove

        async def removed_first(write: Any, *args: Any) -> Any:
            if removing:
                await remove(removing.pop())
            return await write(*args)

        removing = [gone]
        with writes(host, 0, removed_first):
            await host.send(message(1), gone, other)
        assert await has(host, other, 1)

    run(tmp_path, steps)


def test_a_shard_that_says_nothing_of_quotas_takes_recipients(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(host: MailHost) -> None:
        (one, _) = await on(host, 0)

        async def silent(*_: object) -> None:
            await asyncio.Event().wait()

        for answer in (down, silent):
            monkeypatch.setattr("mailserverd.services.receive.QUOTA_LIMIT", 0.05)
            monkeypatch.setattr(host.databases[0], "read", answer)
            await host.receive.check_recipient(one)
            with pytest.raises(MailError) as caught:
                await host.receive.check_recipient("nobody@example.org")
            assert caught.value.kind is Kind.NO_SUCH_USER
            monkeypatch.undo()

    run(tmp_path, steps)


def test_what_runs_in_the_background_catches_up_by_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptances, "AGAIN", 0.05)

    async def steps(host: MailHost) -> None:
        task = asyncio.create_task(host.acceptances.run(host.deliver))
        try:
            with writes(host, 0, down):
                await host.send(message(1), *PEOPLE)
                await host.send(message(2), *PEOPLE)
                assert not await has(host, (await on(host, 0))[0], 2)

            async def all_there() -> bool:
                return await counts(host) == [2] * 6

            async def none_left() -> bool:
                return await waiting(host) == 0

            await until(all_there)
            await until(none_left)
        finally:
            task.cancel()

    run(tmp_path, steps)
