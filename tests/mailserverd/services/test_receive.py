"""The way in: trace fields, policy, one target or several, crashes between them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access, Envelope, Recipient
from mailserverd.services.arrival import InboundPolicy
from storage.model import Flags
from tests.lib.mailhost import PEER, MailHost, mail_host
from tests.lib.zones import FAILED

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

ALICE, BOB = "alice@example.org", "bob@example.org"
MESSAGE = (
    b"From: s@example.net\r\nMessage-ID: <1@x>\r\nSubject: hi\r\n\r\nbody \xff\r\n"
)


def run(
    place: pathlib.Path,
    steps: Callable[[MailHost], Awaitable[None]],
    *addresses: str,
    **how: Any,
) -> None:
    """Run steps with a mail host."""

    async def main() -> None:
        async with mail_host(place, *addresses, **how) as host:
            await steps(host)

    asyncio.run(main())


def break_shard(host: MailHost, number: int) -> Callable[[], None]:
    """Let writes to a shard fail; returns what mends it."""
    database = host.databases[number]
    write = database.write

    async def failing(*_: object) -> None:
        raise MailError(Kind.UNAVAILABLE, "shard is down")

    database.write = failing  # type: ignore[assignment, method-assign] # down

    def mend() -> None:
        database.write = write  # type: ignore[method-assign] # up again

    return mend


def test_the_message_follows_our_trace_fields_octet_by_octet(
    place: pathlib.Path,
) -> None:
    async def steps(host: MailHost) -> None:
        receipt = await host.send(MESSAGE, ALICE)
        (stored,) = await host.mail(ALICE)
        head = stored.removesuffix(MESSAGE)
        assert head + MESSAGE == stored
        lines = head.decode().split("\r\n")
        assert lines[0] == "Return-Path: <s@example.net>"
        assert lines[1] == "Authentication-Results: mx.example.org;"
        assert "Received: from client.example.net ([192.0.2.1])" in lines
        assert "\tby mx.example.org (mailserverd) with ESMTP" in lines
        assert f"\tid {receipt.message_id}; " in head.decode()
        assert receipt.size == len(stored)
        assert receipt.added is not None

    run(place, steps)


def test_results_in_our_name_are_removed_and_others_kept(
    place: pathlib.Path,
) -> None:
    forged = (
        b"Authentication-Results: mx.example.org; dkim=pass\r\n"
        b"AUTHENTICATION-RESULTS:\r\n (x) MX.example.org 1; spf=pass\r\n"
    )
    theirs = b"Authentication-Results: mx.example.net; dkim=pass\r\n"

    async def steps(host: MailHost) -> None:
        for body in (b"x\r\n", b"x" * 400_000 + b"\r\n"):
            await host.send(forged + theirs + MESSAGE + body, ALICE)
            stored = (await host.mail(ALICE))[-1]
            assert stored.endswith(theirs + MESSAGE + body)
            assert b"dkim=pass\r\nAUTH" not in stored
            assert stored.lower().count(b"mx.example.org;") == 1  # ours

    run(place, steps)


def test_a_message_of_many_hops_is_a_loop(place: pathlib.Path) -> None:
    async def steps(host: MailHost) -> None:
        hops = b"Received: from a by b\r\n"
        with pytest.raises(MailError) as caught:
            await host.send(hops * 51 + MESSAGE, ALICE)
        assert caught.value.kind is Kind.MAIL_LOOP
        await host.send(hops * 50 + MESSAGE, ALICE)
        assert len(await host.mail(ALICE)) == 1

    run(place, steps)


def test_a_large_message_is_stored_from_a_file(place: pathlib.Path) -> None:
    large = MESSAGE + (b"0123456789" * 7 + b"\r\n") * 20_000

    async def steps(host: MailHost) -> None:
        incoming = await host.receive.open(
            Envelope("s@example.net", (Recipient(ALICE),)), PEER
        )
        for start in range(0, len(large), 100_000):
            await incoming.write(large[start : start + 100_000])
        await incoming.finish()
        (stored,) = await host.mail(ALICE)
        assert stored.endswith(large)
        access = await host.account(ALICE)
        assert len(await host.messages.read(access, 1, 0, 10)) == 10

    run(place, steps)


def test_everybody_gets_it_once(place: pathlib.Path) -> None:
    async def steps(host: MailHost) -> None:
        await host.accounts.alias_add("all@example.org", [ALICE, BOB])
        await host.send(MESSAGE, "all@example.org", ALICE, "alice+x@example.org", BOB)
        (one,), (two,) = await host.mail(ALICE), await host.mail(BOB)
        assert one == two

    run(place, steps)


def test_recipients_on_several_shards(place: pathlib.Path) -> None:
    people = [f"u{n}@example.org" for n in range(6)]

    async def steps(host: MailHost) -> None:
        shards = {host.shards.shard_of(n) for n in range(1, 7)}
        assert len(shards) == 3
        await host.send(MESSAGE, *people)
        bodies = [await host.mail(one) for one in people]
        assert [len(one) for one in bodies] == [1] * 6
        await host.acceptances.settle()
        assert (await host.queue.stats()).acceptances == 0

    run(place, steps, *people, shards=3)


def test_a_shard_that_is_down_gets_its_part_later_and_once(
    place: pathlib.Path,
) -> None:
    people = [f"u{n}@example.org" for n in range(4)]

    async def steps(host: MailHost) -> None:
        down = host.shards.shard_of(1)
        mend = break_shard(host, down)
        await host.send(MESSAGE, *people)  # several targets: accepted
        with pytest.raises(MailError) as caught:
            await host.send(MESSAGE, people[0])  # one target: deferred
        assert caught.value.temporary
        await host.acceptances.settle()
        assert (await host.queue.stats()).acceptances == 1
        assert await host.acceptances.catch_up(host.deliver) == 1
        mend()
        assert await host.acceptances.catch_up(host.deliver) == 0
        assert await host.acceptances.catch_up(host.deliver) == 0
        bodies = [await host.mail(one) for one in people]
        assert [len(one) for one in bodies] == [1] * 4
        assert len({one[0] for one in bodies}) == 1
        assert (await host.queue.stats()).acceptances == 0

    run(place, steps, *people, shards=2)


def test_a_crash_before_the_note_repeats_nothing(place: pathlib.Path) -> None:
    people = [f"u{n}@example.org" for n in range(4)]

    async def steps(host: MailHost) -> None:
        await host.send(MESSAGE, *people)
        host.acceptances._applied.clear()  # the note dies with the process
        assert (await host.queue.stats()).acceptances == 1
        assert await host.acceptances.catch_up(host.deliver) == 0
        assert [len(await host.mail(one)) for one in people] == [1] * 4
        assert (await host.queue.stats()).acceptances == 0

    run(place, steps, *people, shards=2)


def test_an_account_removed_meanwhile_does_not_block_the_others(
    place: pathlib.Path,
) -> None:
    people = [f"u{n}@example.org" for n in range(4)]

    async def steps(host: MailHost) -> None:
        mends = [break_shard(host, n) for n in range(2)]
        await host.send(MESSAGE, *people)
        for mend in mends:
            mend()
        await host.accounts.account_remove(people[0])
        assert await host.acceptances.catch_up(host.deliver) == 0
        assert [len(await host.mail(one)) for one in people[1:]] == [1] * 3

    run(place, steps, *people, shards=2)


def test_a_key_delivers_once(place: pathlib.Path) -> None:
    async def steps(host: MailHost) -> None:
        await host.send(MESSAGE, ALICE, key=b"k", trusted=True)
        await host.send(MESSAGE, ALICE, key=b"k", trusted=True)
        assert len(await host.mail(ALICE)) == 1

    run(place, steps)


def test_an_alias_forwards_to_another_server(place: pathlib.Path) -> None:
    async def steps(host: MailHost) -> None:
        await host.accounts.alias_add("out@example.org", [ALICE, "x@example.com"])
        receipt = await host.send(MESSAGE, "out@example.org")
        assert len(await host.mail(ALICE)) == 1
        entry = await host.queue.show(receipt.queue_ids[0])
        assert entry.message.reverse_path == "s@example.net"
        assert [r.address for r in entry.recipients] == ["x@example.com"]

    run(place, steps)


def test_a_recipient_that_vanished_defers_the_message(place: pathlib.Path) -> None:
    async def steps(host: MailHost) -> None:
        for gone in ("gone@example.org", "relay@example.com"):
            with pytest.raises(MailError) as caught:
                await host.send(MESSAGE, gone)
            assert caught.value.kind is Kind.UNAVAILABLE

    run(place, steps)


@pytest.mark.parametrize(
    ("policy", "kind", "role"),
    [
        ("none", None, "inbox"),
        ("quarantine", None, "junk"),
        ("reject", Kind.POLICY, ""),
    ],
)
def test_the_senders_policy_is_applied(
    place: pathlib.Path, policy: str, kind: Kind | None, role: str
) -> None:
    records = {("_dmarc.example.net", "TXT"): [f"v=DMARC1; p={policy}".encode()]}

    async def steps(host: MailHost) -> None:
        if kind is not None:
            with pytest.raises(MailError) as caught:
                await host.send(MESSAGE, ALICE)
            assert caught.value.kind is kind
            assert await host.mail(ALICE) == []
            return
        await host.send(MESSAGE, ALICE)
        assert len(await host.mail(ALICE, role)) == 1

    run(place, steps, records=records)


@pytest.mark.parametrize("accept", [True, False])
def test_dns_that_fails_defers_or_marks(place: pathlib.Path, accept: bool) -> None:
    records = {("_dmarc.example.net", "TXT"): FAILED}

    async def steps(host: MailHost) -> None:
        if accept:
            await host.send(MESSAGE, ALICE)
            assert b"dmarc=temperror" in (await host.mail(ALICE))[0]
            return
        with pytest.raises(MailError) as caught:
            await host.send(MESSAGE, ALICE)
        assert caught.value.kind is Kind.TEMPORARY_POLICY

    policy = InboundPolicy(accept_temperror=accept)
    run(place, steps, records=records, policy=policy)


def test_what_is_announced_can_be_read(place: pathlib.Path) -> None:
    async def steps(host: MailHost) -> None:
        access = await host.account(ALICE)
        seen: list[int] = []
        host.changes.subscribe(access.account, lambda _, modseq: seen.append(modseq))
        receipt = await host.send(MESSAGE, ALICE)
        assert receipt.added is not None
        assert seen == [receipt.added.modseq]

    run(place, steps)


def test_an_owner_appends_octets_as_they_are(place: pathlib.Path) -> None:
    odd = b"Subject: x\n\nbare\rlines\n\xff\0"

    async def steps(host: MailHost) -> None:
        access = await host.account(ALICE)
        boxes = (await host.mailboxes.list(access)).mailboxes
        sent = next(b.mailbox_id for b in boxes if b.role == "sent")
        receive = host.receive
        added = await receive.store_message(access, odd, (sent,), Flags(1), 1_700_000)
        assert added.placed[0][0] == sent
        assert await host.mail(ALICE, "sent") == [odd]
        large = await receive.open_append(access, (sent,), Flags(), 5, 10**6)
        for _ in range(10):
            await large.write(b"x" * 100_000)
        receipt = await large.finish()
        assert receipt.size == 10**6
        assert (await host.mail(ALICE, "sent"))[1] == b"x" * 10**6
        other = await host.account(BOB)
        with pytest.raises(MailError) as caught:
            await receive.open_append(
                Access(other.account, access.account), (sent,), Flags(), 5, 10
            )
        assert caught.value.kind is Kind.FORBIDDEN

    run(place, steps)


def test_an_append_over_quota_is_refused_before_its_octets(
    place: pathlib.Path,
) -> None:
    async def steps(host: MailHost) -> None:
        await host.accounts.account_quota(ALICE, 1000)
        access = await host.account(ALICE)
        with pytest.raises(MailError) as caught:
            await host.receive.open_append(access, (1,), Flags(), 5, 1001)
        assert caught.value.kind is Kind.OVER_QUOTA

    run(place, steps)


def test_the_blob_store_waits_for_nobody_afterwards(place: pathlib.Path) -> None:
    async def steps(host: MailHost) -> None:
        await host.send(MESSAGE, ALICE)
        with pytest.raises(MailError):
            await host.send(MESSAGE, "nobody@example.org")
        aborted = await host.receive.open(Envelope("", (Recipient(ALICE),)), PEER)
        aborted.abort()
        aborted.abort()
        assert host.blobs._group._expected == 0

    run(place, steps)


def test_delivery_is_confirmed_to_who_asked(place: pathlib.Path) -> None:
    async def steps(host: MailHost) -> None:
        to = (Recipient(ALICE, ("SUCCESS",), "rfc822;Alice+40example.org"),)
        envelope = Envelope(BOB, to, envid="id+2B1")
        incoming = await host.receive.open(envelope, PEER)
        await incoming.write(MESSAGE)
        await incoming.finish()
        await host.receive.notices.close()
        (report,) = await host.mail(BOB)
        assert b"Return-Path: <>" in report
        assert b"Action: delivered" in report
        assert b"Original-Recipient: rfc822; Alice@example.org" in report
        assert b"Original-Envelope-Id: id+1" in report
        assert b"Subject: hi" in report
        assert b"body" not in report.rpartition(b"rfc822-headers")[2]

    run(place, steps)
