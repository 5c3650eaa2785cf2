"""What every metadata engine promises (``storage.api.Database``), run with the
shard's own units, and what services make of an engine that fails."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from array import array

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import (
    accounts,
    check,
    copies,
    flags,
    mailboxes,
    messages,
    prune,
)
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.sql import inline
from storage.model import (
    Condition,
    EmailPatch,
    EmailQuery,
    FlagChange,
    Flags,
    NewAccount,
    NewMailbox,
    Since,
    StoreFlags,
)
from tests.lib.database_engines import ENGINES
from tests.lib.failing import FailingStore
from tests.lib.office import ME, mail, office
from tests.lib.shard import delivery


@pytest.fixture(params=ENGINES)
def engine(place, request):
    """Return a function that opens the engine on the same place each time."""

    def run(work):
        async def opened():
            async with ENGINES[request.param](place) as database:
                return await work(database)

        return asyncio.run(opened())

    return run


@inline
def on_the_loop(tx, account, args):
    """Check an account without a thread."""
    return check.check_account(tx, account, args)


async def prepared(database, *accounts_):
    for account in accounts_ or (1,):
        await database.write(prepare_account, account, NewAccount())


def test_a_write_that_returned_is_read_at_once_and_after_reopening(engine):
    async def write(database):
        await prepared(database)
        for number in range(1, 4):
            added = await database.write(add_email, 1, delivery(number))
            view = await database.read(messages.view_head, 1, (1, 10))
            assert view.rows[-1][1] == added.email_id

    async def look(database):
        assert len((await database.read(messages.view_head, 1, (1, 10))).rows) == 3

    engine(write)
    engine(look)


def test_concurrent_deliveries_get_their_own_uids_and_modseqs(engine):
    async def work(database):
        await prepared(database, 1, 2)
        many = [
            database.write(add_email, 1 + number % 2, delivery(number))
            for number in range(1, 101)
        ]
        added = await asyncio.gather(*many)
        for account in (1, 2):
            mine = [one for i, one in enumerate(added, 1) if 1 + i % 2 == account]
            assert len({one.placed[0][2] for one in mine}) == 50
            assert len({one.modseq for one in mine}) == 50
            order = sorted(mine, key=lambda one: one.modseq)
            assert order == sorted(mine, key=lambda one: one.email_id)
            assert await database.read(check.check_account, account, None) == ()

    engine(work)


def test_the_same_acceptance_at_the_same_time_is_applied_once(engine):
    async def work(database):
        await prepared(database)
        one = delivery(1, acceptance=b"once")
        added = await asyncio.gather(
            *(database.write(add_email, 1, one) for _ in range(20))
        )
        assert sum(not result.duplicate for result in added) == 1
        assert {result.email_id for result in added} == {1}

    engine(work)


def test_a_unit_that_raises_leaves_nothing_and_spoils_nobodys_batch(engine):
    async def work(database):
        await prepared(database)
        bad = delivery(9, mailboxes=(1, 99))  # the first of them is there
        results = await asyncio.gather(
            database.write(add_email, 1, delivery(1)),
            database.write(add_email, 1, bad),
            database.write(add_email, 7, delivery(2)),
            database.write(add_email, 1, delivery(3)),
            return_exceptions=True,
        )
        kinds = [error.kind for error in results if isinstance(error, MailError)]
        assert kinds == [Kind.NOT_FOUND, Kind.NOT_FOUND]
        assert results[3].modseq == results[0].modseq + 1
        assert await database.read(check.check_account, 1, None) == ()

    engine(work)


def test_a_read_sees_one_moment(engine):
    """Counters and rows read by one unit agree, whatever is written meanwhile."""

    async def work(database):
        await prepared(database)
        done = False

        async def disturb():
            nonlocal done
            for number in range(1, 60):
                await database.write(add_email, 1, delivery(number))
                seen = StoreFlags(1, array("I", [number]), FlagChange.ADD, Flags(1))
                await database.write(flags.store_flags, 1, seen)
            done = True

        async def look(unit):
            while not done:
                assert await database.read(unit, 1, None) == ()
                await asyncio.sleep(0)

        await asyncio.gather(disturb(), look(check.check_account), look(on_the_loop))

    engine(work)


def test_light_and_heavy_units_never_overlap(engine):
    async def work(database):
        await prepared(database)
        await database.write(add_email, 1, delivery(1))
        uids = array("I", [1])
        on = StoreFlags(1, uids, FlagChange.ADD, Flags(4))
        off = StoreFlags(1, uids, FlagChange.REMOVE, Flags(4))
        results = await asyncio.gather(
            *(
                database.write(unit, 1, args)
                for _ in range(10)
                for unit, args in ((flags.store_flags, on), (flags.store_many, off))
            )
        )
        modseqs = [result.modseq for result in results if result.changed]
        assert len(set(modseqs)) == len(modseqs)
        state = await database.read(accounts.state, 1, None)
        assert state.modseq == max(modseqs)
        assert state.modseq == 2 + len(modseqs)  # what changed nothing took none

    engine(work)


def test_pruning_and_checking_a_whole_shard(engine):
    async def work(database):
        await prepared(database, 1, 2, 3)
        for account in await database.read(prune.account_ids, 0, (0, 10)):
            assert not await database.write(prune.prune_tombstones, account, 30)
            assert await database.write(prune.prune_keys, account, 0) is None
        assert await database.write(prune.forget_delivered, 0, 7) == 0
        assert await database.read(check.check_shard, 0, None) == ()

    engine(work)


def test_a_closed_engine_is_temporarily_unavailable(engine):
    kept = []

    async def work(database):
        await prepared(database)
        kept.append(database)

    engine(work)

    async def late():
        for call in (
            kept[0].write(add_email, 1, delivery(1)),
            kept[0].read(accounts.state, 1, None),
        ):
            with pytest.raises(MailError) as caught:
                await call
            assert caught.value.kind is Kind.UNAVAILABLE

    asyncio.run(late())


# --- services on an engine that fails -----------------------------------------------


def calls(it):
    """Return one call of each method, as functions."""
    seen = StoreFlags(1, array("I", [1]), FlagChange.ADD, Flags(1))
    everything = EmailQuery(Condition("in_mailbox", 1))
    boxes, mails = it.mailboxes, it.messages
    return [
        lambda: boxes.list(ME),
        lambda: boxes.state(ME),
        lambda: boxes.create(ME, NewMailbox("x")),
        lambda: boxes.subscriptions(ME),
        lambda: boxes.changes(ME, 0),
        lambda: boxes.destroy(ME, 2, remove_emails=True),
        lambda: mails.view(ME, 1),
        lambda: mails.delta(ME, 1, 0),
        lambda: mails.rows(ME, [1], messages.Column.BASIC),
        lambda: mails.query(ME, everything),
        lambda: mails.changes(ME, Since(0)),
        lambda: mails.threads(ME, [1]),
        lambda: mails.read(ME, 1),
        lambda: mails.find_blob(ME, bytes(32)),
        lambda: mails.store_flags(ME, seen),
        lambda: mails.copy(ME, 1, [1], 3),
        lambda: mails.expunge(ME, 1, None),
        lambda: mails.update(ME, [EmailPatch(1, ("x",))]),
        lambda: mails.destroy(ME, [1]),
    ]


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.STORAGE_FULL])
def test_a_store_that_is_down_is_an_error_and_never_an_empty_folder(tmp_path, kind):
    async def run():
        failing = []

        def wrap(store):
            failing.append(FailingStore(store, "never", kind))
            return failing[0]

        async with office(tmp_path, wrap) as it:
            await it.add(mail("one"))
            known = await it.mailboxes.list(ME)
            it.heard.clear()
            failing[0].mode = "always"
            for call in calls(it):
                with pytest.raises(MailError) as caught:
                    await call()
                assert caught.value.kind is kind
                assert caught.value.temporary
            assert it.heard == []  # nothing was announced that did not happen
            failing[0].mode = "never"
            assert dataclasses.replace(await it.mailboxes.list(ME)) == known

    asyncio.run(run())


def test_a_lost_answer_of_a_delivery_is_found_by_its_key(place):
    async def run():
        async with office(place) as it:
            lost = FailingStore(it.store, "after")
            one = delivery(1, acceptance=b"key")
            with pytest.raises(MailError):
                await lost.write(ME, add_email, one)
            again = await it.store.write(ME, add_email, one)
            assert again.duplicate
            assert (await it.mailboxes.state(ME)).message_count == 1

    asyncio.run(run())


def test_units_are_plain_functions_with_plain_data():
    """They may be sent to another process."""
    for unit, args in (
        (add_email, delivery(1)),
        (mailboxes.create, NewMailbox("x")),
        (copies.copy, (1, array("I", [1]), 2)),
        (flags.update, ([EmailPatch(1)], None)),
        (messages.read_rows, ([1], messages.Column.BASIC)),
    ):
        assert pickle.loads(pickle.dumps((unit, args)))[0] is unit
