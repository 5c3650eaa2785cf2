"""``storage check``: damage is a fault where something needed lies, else a note."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Recipient
from mailserverd.services.upkeep import Upkeep
from mailserverd.services.usage import unless_removed
from storage.metadata import blobs as units
from storage.queue import NewQueued
from storage.segments import RECORD_HEADER
from tests.lib.blobs import opened
from tests.lib.mailhost import mail_host

if TYPE_CHECKING:
    import pathlib
    from typing import Any

    from storage.model import BlobRef
    from tests.lib.mailhost import MailHost

MESSAGE = b"From: a@example.net\r\nSubject: x\r\n\r\ntext\r\n"


async def check(host: MailHost) -> dict[str, Any]:
    upkeep = Upkeep(host.directory, host.shards, host.queue, host.blobs, host.changes)
    return await upkeep.check(lambda _: None)


def damage(directory: pathlib.Path, ref: BlobRef) -> None:
    (segment,) = (directory / "blobs").glob("*.open")
    with segment.open("r+b") as file:
        file.seek(ref.offset + RECORD_HEADER)
        file.write(b"\xff")


async def unneeded(host: MailHost) -> BlobRef:
    return await host.blobs.put(b"of a message that was still arriving")


async def delivered(host: MailHost) -> BlobRef:
    await host.send(MESSAGE, "alice@example.org")
    (ref,) = await host.databases[0].read(units.list_blobs, 0, (b"", 10))
    return ref


async def queued(host: MailHost) -> BlobRef:
    ref = await host.blobs.put(MESSAGE)
    to = (Recipient("friend@example.com"),)
    await host.queue.enqueue(NewQueued("alice@example.org", to, ref, 1 << 40))
    return ref


@pytest.mark.parametrize(
    ("put", "fault"), [(unneeded, False), (delivered, True), (queued, True)]
)
def test_damage_is_a_fault_where_something_needed_lies(
    place: pathlib.Path, put: Any, fault: bool
) -> None:
    async def run() -> tuple[dict[str, Any], dict[str, Any]]:
        async with mail_host(place) as host:
            ref = await put(host)
            await host.blobs.put(b"the next record")
            before = await check(host)
            damage(place, ref)
            return before, await check(host)

    before, after = asyncio.run(run())
    assert (before["faults"], before["notes"]) == ([], [])
    assert len(after["faults"]) == fault
    assert len(after["notes"]) == (not fault)


def test_a_queued_message_without_its_record_is_a_fault(
    place: pathlib.Path,
) -> None:
    async def run() -> dict[str, Any]:
        async with mail_host(place) as host:
            ref = await queued(host)
            elsewhere = dataclasses.replace(ref, offset=ref.offset + 1)
            await host.queue.move_blobs([(ref, elsewhere)])
            return await check(host)

    (fault,) = asyncio.run(run())["faults"]
    assert fault.startswith("queue: blob ")


def test_what_arrives_after_its_segment_was_read_is_no_fault(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> dict[str, Any]:
        async with mail_host(place) as host:
            await delivered(host)
            listed = host.blobs.list_blobs

            async def slowly(segment: int) -> list[BlobRef]:
                found = await listed(segment)
                await host.send(MESSAGE + b"late", "bob@example.org")
                return found

            monkeypatch.setattr(host.blobs, "list_blobs", slowly)
            return await check(host)

    assert asyncio.run(run())["faults"] == []


def test_a_segment_that_is_removed_while_looked_at_is_passed_over(
    place: pathlib.Path,
) -> None:
    async def run() -> None:
        async with opened(place) as store:
            await store.put(b"x" * 6000)
            last = (await store.put(b"in the next segment")).segment
            await store.remove_segment(1)
            assert await unless_removed(store, 1, store.list_blobs(1)) is None
            with pytest.raises(MailError) as caught:
                await unless_removed(store, last, store.remove_segment(last))
            assert caught.value.kind is Kind.INVALID

    asyncio.run(run())
