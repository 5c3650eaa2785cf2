"""The mailbox service: cache, announcements, access, large removals."""

from __future__ import annotations

import asyncio

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access, system
from mailserverd.services import mailboxes as service
from storage.metadata import check
from storage.metadata import mailboxes as units
from storage.model import MailboxPatch, NewMailbox
from tests.lib.office import ME, OTHER, mail, office


def test_the_list_is_cached_and_always_true(place):
    async def run():
        async with office(place) as it:
            first = await it.mailboxes.list(ME)
            assert await it.mailboxes.list(ME) is first
            await it.add(mail("one"))
            second = await it.mailboxes.list(ME)
            assert second.mailboxes[0].messages == 1
            assert second.state == await it.mailboxes.state(ME)
            await it.mailboxes.set_quota(1, 5000)
            assert (await it.mailboxes.list(ME)).state.quota_limit == 5000

    asyncio.run(run())


def test_the_cache_is_bounded(place, monkeypatch):
    monkeypatch.setattr(service, "CACHED", 10)

    async def run():
        async with office(place) as it:
            mine = await it.mailboxes.list(ME)
            await it.mailboxes.list(OTHER)
            assert await it.mailboxes.list(ME) is not mine

    asyncio.run(run())


def test_a_list_that_is_brought_up_to_date_is_what_a_new_one_would_be(place):
    """Whatever happened meanwhile; one changed mailbox of many is read alone."""

    async def run():
        async with office(place) as it:
            for name in ("a", "a/b", "c"):
                await it.mailboxes.create_path(ME, name)
            boxes = {m.path: m.mailbox_id for m in await listed(it)}
            b = boxes["a/b"]

            async def rename():
                await it.mailboxes.update(ME, MailboxPatch(boxes["a"], name="z"))

            async def swap():
                await it.mailboxes.destroy(ME, boxes["c"], remove_emails=False)
                await it.mailboxes.create_path(ME, "d")

            for change in (
                lambda: it.add(mail("one")),
                lambda: it.messages.copy(ME, boxes["INBOX"], [1], b),
                rename,
                lambda: it.mailboxes.subscribe(ME, "nowhere", True),
                lambda: it.add(mail("two")),
                swap,
                lambda: it.messages.move(ME, b, [1], boxes["Trash"]),
                lambda: it.mailboxes.destroy(ME, b, remove_emails=True),
                lambda: it.mailboxes.set_quota(1, 77),
            ):
                await change()
                known = await it.mailboxes.list(ME)
                assert known == await it.store.read(ME, units.list_all, None)

    async def listed(it):
        return (await it.mailboxes.list(ME)).mailboxes

    asyncio.run(run())


def test_only_changed_mailboxes_are_read_again(place):
    async def run():
        async with office(place) as it:
            for number in range(50):
                await it.mailboxes.create_path(ME, f"x{number}")
            before = await it.mailboxes.list(ME)
            await it.add(mail("one"))
            after = await it.mailboxes.list(ME)
            same = [
                old is new
                for old, new in zip(before.mailboxes, after.mailboxes, strict=True)
            ]
            assert same.count(False) == 1

    asyncio.run(run())


def test_what_changes_is_announced_and_nothing_else(place):
    async def run():
        async with office(place) as it:
            box = await it.mailboxes.create(ME, NewMailbox("x"))
            await it.mailboxes.update(ME, MailboxPatch(box.mailbox_id, name="y"))
            await it.mailboxes.update(ME, MailboxPatch(box.mailbox_id, name="y"))
            await it.mailboxes.subscribe(ME, "y", False)
            await it.mailboxes.subscribe(ME, "y", False)
            await it.mailboxes.rename_path(ME, "y", "z/y")
            await it.mailboxes.create_path(ME, "q")
            await it.mailboxes.destroy(ME, box.mailbox_id, remove_emails=False)
            modseqs = [modseq for account, modseq in it.heard if account == 1]
            state = await it.mailboxes.state(ME)
            assert modseqs == list(range(state.modseq - 5, state.modseq + 1))
            assert not [modseq for account, modseq in it.heard if account == 2]

    asyncio.run(run())


@pytest.mark.parametrize("principal", [2, 7])
def test_another_principal_is_refused_everywhere(place, principal):
    async def run():
        async with office(place) as it:
            stranger = Access(principal, 1)
            for call in (
                it.mailboxes.list(stranger),
                it.mailboxes.state(stranger),
                it.mailboxes.create(stranger, NewMailbox("x")),
                it.mailboxes.create_path(stranger, "x"),
                it.mailboxes.update(stranger, MailboxPatch(2, name="x")),
                it.mailboxes.rename_path(stranger, "Sent", "x"),
                it.mailboxes.subscribe(stranger, "x", True),
                it.mailboxes.subscriptions(stranger),
                it.mailboxes.destroy(stranger, 2, remove_emails=True),
                it.mailboxes.changes(stranger, 0),
            ):
                with pytest.raises(MailError) as caught:
                    await call
                assert caught.value.kind is Kind.FORBIDDEN
            assert await it.mailboxes.list(system(1))

    asyncio.run(run())


def test_a_full_mailbox_goes_in_pieces(place, monkeypatch):
    monkeypatch.setattr(service, "EMPTY_AT_ONCE", 3)

    async def run():
        async with office(place) as it:
            box = await it.mailboxes.create_path(ME, "full")
            for number in range(8):
                await it.add(mail(f"n{number}"), mailboxes=(box.mailbox_id,))
            await it.add(mail("both"), mailboxes=(box.mailbox_id, 1))
            with pytest.raises(MailError) as caught:
                await it.mailboxes.destroy(ME, box.mailbox_id, remove_emails=False)
            assert caught.value.kind is Kind.NOT_EMPTY
            await it.mailboxes.destroy(ME, box.mailbox_id, remove_emails=True)
            listed = await it.mailboxes.list(ME)
            assert "full" not in [known.path for known in listed.mailboxes]
            assert listed.state.message_count == 1
            assert await it.store.read(ME, check.check_account, None) == ()

    asyncio.run(run())


def test_changes_of_mailboxes(place):
    async def run():
        async with office(place) as it:
            since = (await it.mailboxes.state(ME)).mailbox
            box = await it.mailboxes.create(ME, NewMailbox("x"))
            await it.add(mail("one"))
            found = await it.mailboxes.changes(ME, since)
            assert (found.created, found.updated) == ((box.mailbox_id,), (1,))
            assert not found.has_more

    asyncio.run(run())
