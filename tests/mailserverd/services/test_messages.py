"""The message service: views, large sets, content, uploads, access."""

from __future__ import annotations

import asyncio
import io
from array import array

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import Access
from mailserverd.services import copying, views
from mailserverd.services import messages as service
from storage.metadata import check
from storage.model import (
    Column,
    Condition,
    EmailPatch,
    EmailQuery,
    FlagChange,
    Flags,
    Since,
    StoreFlags,
)
from tests.lib.office import ME, OTHER, mail, office

ALL = Column.BASIC | Column.LIST | Column.MAILBOXES


def test_a_view_is_read_in_chunks_while_mail_arrives(place, monkeypatch):
    monkeypatch.setattr(views, "FIRST", 3)
    monkeypatch.setattr(views, "CHUNK", 2)

    async def run():
        async with office(place) as it:
            for number in range(11):
                await it.add(mail(f"n{number}"))
            words = Flags(1, ("$junk",))
            uids = array("I", [2, 9])

            async def disturb():
                await it.add(mail("late"))
                change = StoreFlags(1, uids, FlagChange.ADD, words)
                await it.messages.store_flags(ME, change)
                mark = StoreFlags(1, array("I", [1, 10]), FlagChange.ADD, Flags(), True)
                await it.messages.store_flags(ME, mark)
                await it.messages.expunge(ME, 1, None)

            view, _ = await asyncio.gather(it.messages.view(ME, 1), disturb())
            while view.highestmodseq < (await it.mailboxes.state(ME)).modseq:
                delta = await it.messages.delta(ME, 1, view.highestmodseq)
                view = views.apply_delta(view, delta)
            fresh = await it.messages.view(ME, 1)
            assert (
                list(view.uids) == list(fresh.uids) == [2, 3, 4, 5, 6, 7, 8, 9, 11, 12]
            )
            assert shown(view) == shown(fresh)
            assert fresh.uidnext == 13

    asyncio.run(run())


def shown(view):
    """Return rows of a view with the words spelt out."""
    sets = ((), *view.keyword_sets)
    return [
        (uid, email, modseq, bits & 31, sets[bits >> 8])
        for uid, email, modseq, bits in zip(
            view.uids, view.email_ids, view.modseqs, view.flags, strict=True
        )
    ]


def test_changes_between_chunks_are_mended(place, monkeypatch):
    """Between two chunks the mailbox changes: the view is still of one moment."""
    monkeypatch.setattr(views, "FIRST", 2)
    monkeypatch.setattr(views, "CHUNK", 2)

    async def run():
        async with office(place) as it:
            for number in range(6):
                await it.add(mail(f"n{number}"))
            reads = 0
            read = it.store.read

            async def disturbed(access, work, args):
                nonlocal reads
                reads += 1
                result = await read(access, work, args)
                if reads == 2:
                    await it.messages.move(ME, 1, [1, 5], 2)
                    await it.messages.copy(ME, 2, [1], 1)
                return result

            it.store.read = disturbed
            view = await it.messages.view(ME, 1)
            it.store.read = read
            assert shown(view) == shown(await it.messages.view(ME, 1))
            assert list(view.uids) == [2, 3, 4, 6, 7]

    asyncio.run(run())


def test_large_sets_are_cut_into_units(place, monkeypatch):
    monkeypatch.setattr(service, "FEW", 3)
    monkeypatch.setattr(service, "CHUNK", 4)
    monkeypatch.setattr(service, "STORE_CHUNK", 5)

    async def run():
        async with office(place) as it:
            for number in range(13):
                await it.add(mail(f"n{number}"))
            uids = array("I", range(1, 14))
            ids = list(range(13, 0, -1))
            rows = await it.messages.rows(ME, [*ids, 99], ALL)
            assert list(rows) == ids
            page = await it.messages.page(ME, 1, 2, 11, ALL, 7)
            assert [uid for uid, _ in page] == [2, 3, 4, 5, 6, 7, 8]
            seen = StoreFlags(1, uids, FlagChange.ADD, Flags(1))
            result = await it.messages.store_flags(ME, seen)
            assert [row[0] for row in result.changed] == list(uids)
            assert result.modseq == (await it.mailboxes.state(ME)).modseq
            copied = await it.messages.copy(ME, 1, list(uids), 2)
            assert copied.target_uids == tuple(uids)
            moved = await it.messages.move(ME, 2, list(uids), 3)
            assert moved.source_uids == tuple(uids)
            gone = StoreFlags(3, uids, FlagChange.ADD, Flags(), deleted=True)
            await it.messages.store_flags(ME, gone)
            removed, modseq = await it.messages.expunge(ME, 3, list(uids)[1:])
            assert removed == tuple(uids)[1:]
            assert modseq == (await it.mailboxes.state(ME)).modseq
            patches = [EmailPatch(n, remove_keywords=("$seen",)) for n in ids]
            assert len((await it.messages.update(ME, patches)).updated) == 13
            assert len((await it.messages.destroy(ME, ids)).destroyed) == 13
            assert await it.store.read(ME, check.check_account, None) == ()

    asyncio.run(run())


def test_a_large_copy_is_all_or_nothing(place, monkeypatch):
    monkeypatch.setattr(service, "FEW", 1)
    monkeypatch.setattr(copying, "CHUNK", 3)

    async def run():
        async with office(place) as it:
            for number in range(8):
                await it.add(mail(f"n{number}"))
            uids = list(range(1, 9))
            await it.messages.copy(ME, 1, uids, 2)
            before = await it.mailboxes.list(ME)
            used = before.state.quota_used
            await it.mailboxes.set_quota(1, used + used // 2)
            with pytest.raises(MailError) as caught:
                await it.messages.copy(ME, 1, uids, 2)  # a second copy takes room
            assert caught.value.kind is Kind.OVER_QUOTA
            after = await it.mailboxes.list(ME)
            assert after.state.quota_used == used
            assert [b.messages for b in after.mailboxes] == [
                b.messages for b in before.mailboxes
            ]
            view = await it.messages.view(ME, 2)
            assert list(view.uids) == uids
            assert it.heard[-1] == (1, after.state.modseq)
            assert await it.store.read(ME, check.check_account, None) == ()

    asyncio.run(run())


def test_a_large_copy_outlives_the_session_that_asked(place, monkeypatch):
    monkeypatch.setattr(service, "FEW", 1)
    monkeypatch.setattr(copying, "CHUNK", 2)

    async def run():
        async with office(place) as it:
            for number in range(8):
                await it.add(mail(f"n{number}"))
            copy = it.messages.copy(ME, 1, list(range(1, 9)), 2)
            task = asyncio.create_task(copy)
            heard = asyncio.Event()
            it.changes.subscribe(1, lambda *_: heard.set())
            await heard.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait(others, timeout=10)
            assert len((await it.messages.view(ME, 2)).uids) == 8

    asyncio.run(run())


def test_content_is_read_whole_and_in_part(place):
    async def run():
        async with office(place) as it:
            raw = mail("one", "x" * 400_000)
            added = await it.add(raw)
            number = added.email_id
            assert await it.messages.read(ME, number) == raw
            assert await it.messages.read(ME, number, 5, 12) == raw[5:12]
            chunks = [chunk async for chunk in it.messages.stream(ME, number, 3)]
            assert b"".join(chunks) == raw[3:]
            with pytest.raises(MailError) as caught:
                await it.messages.read(ME, 99)
            assert caught.value.kind is Kind.NOT_FOUND
            texts = await it.messages.search_text(ME, [number])
            assert "subject: one" in texts[number][0]

    asyncio.run(run())


def test_uploads_are_the_accounts_own_and_expire(place):
    async def run():
        async with office(place) as it:
            first = await it.messages.upload(ME, b"hello", "text/plain")
            file = io.BytesIO(b"world" * 1000)
            second = await it.messages.upload(ME, (file, 5000), "image/png")
            for ref, content in ((first, b"hello"), (second, b"world" * 1000)):
                assert await it.messages.find_blob(ME, ref.hash) == ref
                assert await it.messages.read_blob(ref) == content
                parts = [part async for part in it.messages.stream_blob(ref, 1, 4)]
                assert b"".join(parts) == content[1:4]
                with pytest.raises(MailError) as caught:
                    await it.messages.find_blob(OTHER, ref.hash)
                assert caught.value.kind is Kind.NOT_FOUND
            it.clock.move(86_401)
            with pytest.raises(MailError):
                await it.messages.find_blob(ME, first.hash)

    asyncio.run(run())


def test_ids_of_another_account_do_nothing(place):
    """Both accounts have an email 1 and a mailbox 1; neither sees the other's."""

    async def run():
        async with office(place) as it:
            await it.add(mail("mine"))
            await it.add(mail("theirs"), OTHER)
            await it.add(mail("theirs too"), OTHER)
            mine = await it.messages.rows(ME, [1, 2], ALL)
            assert list(mine) == [1]
            assert b"mine" in mine[1].list_json
            seen = StoreFlags(1, array("I", [1, 2]), FlagChange.ADD, Flags(1))
            assert len((await it.messages.store_flags(ME, seen)).changed) == 1
            assert (await it.messages.destroy(ME, [1, 2])).destroyed == (1,)
            theirs = await it.messages.get_states(OTHER, [1, 2])
            assert [theirs[key][1] for key in (1, 2)] == [Flags(), Flags()]
            everything = EmailQuery(Condition("in_mailbox", 1))
            assert len((await it.messages.query(OTHER, everything)).ids) == 2

    asyncio.run(run())


def test_another_principal_is_refused_everywhere(place):
    async def run():
        async with office(place) as it:
            await it.add(mail("mine"))
            me = Access(2, 1)
            uids = array("I", [1])
            store = StoreFlags(1, uids, FlagChange.ADD, Flags(1))
            calls = [
                it.messages.view(me, 1),
                it.messages.delta(me, 1, 0),
                it.messages.vanished(me, 1, 0),
                it.messages.rows(me, [1], ALL),
                it.messages.page(me, 1, 1, 2, ALL, 5),
                it.messages.get_states(me, [1]),
                it.messages.query(me, EmailQuery()),
                it.messages.changes(me, 0),
                it.messages.thread_changes(me, 0),
                it.messages.threads(me, [1]),
                it.messages.search_text(me, [1]),
                it.messages.read(me, 1),
                it.messages.find_blob(me, bytes(32)),
                it.messages.upload(me, b"x", ""),
                it.messages.store_flags(me, store),
                it.messages.copy(me, 1, [1], 2),
                it.messages.move(me, 1, [1], 2),
                it.messages.expunge(me, 1, None),
                it.messages.update(me, [EmailPatch(1)]),
                it.messages.destroy(me, [1]),
            ]
            for call in calls:
                with pytest.raises(MailError) as caught:
                    await call
                assert caught.value.kind is Kind.FORBIDDEN
            with pytest.raises(MailError):
                async for _ in it.messages.stream(me, 1):
                    raise AssertionError

    asyncio.run(run())


def test_changes_and_threads(place):
    async def run():
        async with office(place) as it:
            since = (await it.mailboxes.state(ME)).email
            await it.add(mail("one", Message_ID="<a@x>"))
            await it.add(mail("Re: one", Message_ID="<b@x>", References="<a@x>"))
            found = await it.messages.changes(ME, since)
            assert found.created == (1, 2)
            found = await it.messages.changes(ME, Since(since, 1))
            assert (found.created, found.has_more) == ((1,), True)
            threads = await it.messages.thread_changes(ME, since)
            assert threads.created == (1,)
            assert await it.messages.threads(ME, [1, 5]) == {1: (1, 2)}
            many = list(range(1, 100))
            assert await it.messages.threads(ME, many) == {1: (1, 2)}

    asyncio.run(run())


def test_every_write_is_announced(place):
    async def run():
        async with office(place) as it:
            await it.add(mail("one"))
            it.heard.clear()
            seen = StoreFlags(1, array("I", [1]), FlagChange.ADD, Flags(1), True)
            results = [
                (await it.messages.store_flags(ME, seen)).modseq,
                (await it.messages.copy(ME, 1, [1], 2)).modseq,
                (await it.messages.move(ME, 2, [1], 3)).modseq,
                (await it.messages.expunge(ME, 1, None))[1],
                (await it.messages.update(ME, [EmailPatch(1, ("x",))])).modseq,
                (await it.messages.destroy(ME, [1])).modseq,
            ]
            assert it.heard == [(1, modseq) for modseq in results]

    asyncio.run(run())
