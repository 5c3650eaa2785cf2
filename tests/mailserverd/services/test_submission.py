"""The way out: whose message it is, what is added, who gets it, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from auth.mail.dkim import verify
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access, Envelope, Peer, Recipient
from mailserverd.services import outgoing, spool
from mailserverd.services.submission import Submission, SubmissionLimits
from tests.lib.clock import ManualClock
from tests.lib.mailhost import MailHost, mail_host
from tests.lib.zones import ZoneResolver

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

ALICE, BOB, FRIEND = "alice@example.org", "bob@example.org", "friend@example.com"
MESSAGE = b"From: Alice <alice@example.org>\nTo: x\nBcc: bob@example.org\n\nHello\n"
PHONE = Peer("203.0.113.9", 5, "phone.local", "TLSv1.3", "ESMTPSA")


def run(
    place: pathlib.Path,
    steps: Callable[[MailHost, Submission, Access], Awaitable[None]],
    **how: Any,
) -> None:
    """Run steps with the submission service and alice's access."""

    async def main() -> None:
        async with mail_host(place, **how) as host:
            limits = SubmissionLimits(max_size=5000, max_recipients=3)
            submission = Submission(host.receive, limits)
            await steps(host, submission, await host.account(ALICE))

    asyncio.run(main())


def envelope(*to: str, sender: str = ALICE) -> Envelope:
    return Envelope(sender, tuple(map(Recipient, to)))


def test_local_and_remote_recipients_through_one_acceptance(
    place: pathlib.Path,
) -> None:
    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        sent = await submission.submit(
            access, envelope(FRIEND, BOB), MESSAGE, peer=PHONE
        )
        (stored,) = await host.mail(BOB)
        assert stored == b"Return-Path: <alice@example.org>\r\n" + sent.message
        assert sent.delivered == (BOB,)
        entry = await host.queue.show(sent.queue_id)
        assert [r.address for r in entry.recipients] == [FRIEND]
        assert entry.message.account == access.account
        raw = await host.blobs.read(entry.message.blob)
        assert raw == stored
        assert await submission.status(sent.queue_id) == {
            FRIEND: ("queued", "", entry.recipients[0].updated)
        }

    run(place, steps)


@pytest.mark.parametrize("ends", [b"\r\n", b"\n", b"\r"])
def test_a_spooled_message_leaves_as_one_in_memory_does(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, ends: bytes
) -> None:
    """Whatever its line ends are, and wherever a piece of it ends."""
    lines = b"Bcc: x@y\r\nDate: Mon, 2 Nov 2026 10:00:00 +0000\r\n"
    lines += b"Message-ID: <1@example.org>\r\n" + MESSAGE.replace(b"\n", b"\r\n")
    lines += b"abcde\r\n\r\n" * 400
    raw = lines.replace(b"\r\n", ends)
    stored: list[bytes] = []

    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        await submission.submit(access, envelope(BOB), raw, peer=PHONE, key=b"same")
        (message,) = await host.mail(BOB)
        stored.append(message[message.index(b"Date: ") :])  # not our signatures

    place.mkdir(exist_ok=True)
    run(place / "memory", steps)
    monkeypatch.setattr(spool, "MEMORY", 10)
    for piece in (1000, 1001, 1002):
        monkeypatch.setattr(outgoing, "PIECE", piece)
        run(place / f"spooled{piece}", steps)
    assert len(stored) == 4
    assert set(stored) == {stored[0]}
    assert b"abcde\r\n\r\nabcde" in stored[0]


def test_nul_is_refused_in_a_spooled_message_too(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MEMORY", 10)

    async def steps(_: MailHost, submission: Submission, access: Access) -> None:
        with pytest.raises(MailError) as caught:
            await submission.submit(access, envelope(BOB), MESSAGE + b"\0\r\n")
        assert caught.value.kind is Kind.INVALID

    run(place, steps)


def test_the_message_is_completed_cleaned_and_traced(place: pathlib.Path) -> None:
    extra = (
        b"Return-Path: <x@y>\r\nAuthentication-Results: mx.example.org; dkim=pass\r\n"
    )

    async def steps(_: MailHost, submission: Submission, access: Access) -> None:
        sent = await submission.submit(
            access, envelope(FRIEND), extra + MESSAGE, peer=PHONE
        )
        text = sent.message.decode()
        assert text.replace("\r\n", "").count("\n") == 0
        assert "bob@example.org" not in text
        assert "Return-Path" not in text
        assert "dkim=pass" not in text
        assert "\r\nDate: " in text
        assert "\r\nMessage-ID: <" in text
        assert "Received: from mx.example.org (authenticated submission)" in text
        assert "with ESMTPSA (TLSv1.3)" in text
        assert "203.0.113.9" not in text
        assert "phone.local" not in text
        assert text.endswith("\r\n\r\nHello\r\n")

    run(place, steps)


def test_both_signatures_verify(place: pathlib.Path) -> None:
    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        sent = await submission.submit(access, envelope(FRIEND), MESSAGE)
        keys = await host.directory.dkim_keys("example.org")
        records = {
            (f"{key.selector}._domainkey.example.org", "TXT"): [key.txt.encode()]
            for key in keys
        }
        results = await verify(ZoneResolver(records), sent.message, host.clock.now())
        assert [r.result for r in results] == ["pass", "pass"]
        assert {r.algorithm for r in results} == {"rsa-sha256", "ed25519-sha256"}
        assert {r.domain for r in results} == {"example.org"}

    run(place, steps)


@pytest.mark.parametrize(
    ("sender", "message", "kind"),
    [
        (BOB, MESSAGE, Kind.SENDER_REFUSED),
        ("alice@example.com", MESSAGE, Kind.SENDER_REFUSED),
        (ALICE, b"From: bob@example.org\n\n", Kind.SENDER_REFUSED),
        (ALICE, b"From: alice@example.org, bob@example.org\n\n", Kind.SENDER_REFUSED),
        (
            ALICE,
            b"From: alice@example.org\nSender: bob@example.org\n\n",
            Kind.SENDER_REFUSED,
        ),
        (ALICE, b"From: undisclosed\n\n", Kind.SENDER_REFUSED),
        (ALICE, b"Subject: nobody\n\n", Kind.INVALID),
        (ALICE, b"From: a@b\nFrom: alice@example.org\n\n", Kind.SENDER_REFUSED),
        (ALICE, MESSAGE + b"\0", Kind.INVALID),
        (ALICE, MESSAGE + b"x" * 5000, Kind.TOO_LARGE),
    ],
)
def test_what_is_refused(
    place: pathlib.Path, sender: str, message: bytes, kind: Kind
) -> None:
    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        with pytest.raises(MailError) as caught:
            await submission.submit(access, envelope(BOB, sender=sender), message)
        assert caught.value.kind is kind
        assert await host.mail(BOB) == []

    run(place, steps)


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        ((), Kind.INVALID),
        ((BOB, "a@example.com", "b@example.com", "c@example.com"), Kind.LIMIT),
        (("not an address",), Kind.INVALID),
        (("a@example.com\r\nRCPT TO:<b@example.com>",), Kind.INVALID),
        ((BOB, "nobody@example.org"), Kind.NO_SUCH_USER),
    ],
)
def test_recipients_that_are_refused(
    place: pathlib.Path, to: tuple[str, ...], kind: Kind
) -> None:
    async def steps(_: MailHost, submission: Submission, access: Access) -> None:
        with pytest.raises(MailError) as caught:
            await submission.submit(access, envelope(*to), MESSAGE)
        assert caught.value.kind is kind

    run(place, steps)


def test_a_stranger_submits_nothing_in_anothers_name(place: pathlib.Path) -> None:
    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        bob = await host.account(BOB)
        for bad in (Access(bob.account, access.account), bob):
            with pytest.raises(MailError):
                await submission.submit(bad, envelope(FRIEND), MESSAGE)

    run(place, steps)


def test_details_and_aliases_are_addresses_of_ones_own(place: pathlib.Path) -> None:
    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        await host.accounts.alias_add("sales@example.org", [ALICE], send_as=True)
        for own in ("alice+x@example.org", "Sales@Example.ORG", ""):
            sender = own or ALICE
            message = b"From: " + sender.encode() + b"\n\nx\n"
            await submission.submit(access, envelope(BOB, sender=own), message)
        assert len(await host.mail(BOB)) == 3

    run(place, steps)


def test_a_key_submits_once(place: pathlib.Path) -> None:
    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        for to in ((FRIEND,), (BOB,), (FRIEND, BOB)):
            key = ",".join(to).encode()
            ids = {
                (
                    await submission.submit(access, envelope(*to), MESSAGE, key=key)
                ).queue_id
                for _ in range(2)
            }
            assert len(ids) == 1
        assert len(await host.mail(BOB)) == 2
        assert len(await host.queue.list()) == 2

    run(place, steps)


def test_later_means_later_and_can_be_undone(place: pathlib.Path) -> None:
    clock = ManualClock()

    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        sent = await submission.submit(
            access, envelope(FRIEND, BOB), MESSAGE, send_at=clock.now() + 60
        )
        assert sent.delivered == ()
        assert await host.mail(BOB) == []
        assert await host.queue.claim() == ()
        assert await submission.cancel(sent.queue_id)
        assert not await submission.cancel(sent.queue_id)
        clock.move(100)
        assert await host.queue.claim() == ()
        states = await submission.status(sent.queue_id)
        assert {state for state, _, _ in states.values()} == {"canceled"}

    run(place, steps, clock=clock)


def test_international_addresses_ask_for_smtputf8(place: pathlib.Path) -> None:
    async def steps(host: MailHost, submission: Submission, access: Access) -> None:
        to = "j\u00fcrgen@b\u00fccher.example"
        sent = await submission.submit(access, envelope(to), MESSAGE)
        entry = await host.queue.show(sent.queue_id)
        assert entry.message.smtputf8
        address = entry.recipients[0].address
        assert address == "j\u00fcrgen@xn--bcher-kva.example"

    run(place, steps)
