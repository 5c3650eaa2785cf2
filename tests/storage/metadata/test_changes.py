"""Foo/changes: limits, states inside one modseq, pruned tombstones, counts alone."""

from __future__ import annotations

import pathlib
from array import array

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import (
    accounts,
    changes,
    copies,
    flags,
    mailboxes,
    messages,
    prune,
)
from storage.model import (
    EmailPatch,
    FlagChange,
    Flags,
    MailboxPatch,
    NewMailbox,
    Since,
    StoreFlags,
)
from tests.lib.shard import Shard

DAY = 86_400


def fails(shard, unit, since):
    with pytest.raises(MailError) as caught:
        shard.run(unit, since)
    return caught.value.kind is Kind.CANNOT_CALCULATE_CHANGES


@pytest.fixture
def shard():
    shard = Shard()
    for number in range(1, 11):
        shard.deliver(number)
    return shard


def test_created_and_destroyed_since_is_not_listed(shard):
    since = shard.run(accounts.state).email
    shard.deliver(20)
    shard.run(flags.destroy, ([11], None))
    answer = shard.run(changes.emails, Since(since))
    assert (answer.created, answer.updated, answer.destroyed) == ((), (), ())
    threads = shard.run(changes.threads, Since(since))
    assert (threads.created, threads.updated, threads.destroyed) == ((), (), ())


def test_marked_deleted_is_destroyed_and_unmarked_is_back(shard):
    since = shard.run(accounts.state).email
    uids = array("I", [3])
    mark = StoreFlags(1, uids, FlagChange.ADD, Flags(), deleted=True)
    shard.run(flags.store_flags, mark)
    assert shard.run(changes.emails, Since(since)).destroyed == (3,)
    middle = shard.run(accounts.state).email
    unmark = StoreFlags(1, uids, FlagChange.REMOVE, Flags(), deleted=True)
    shard.run(flags.store_flags, unmark)
    assert shard.run(changes.emails, Since(since)).updated == (3,)
    assert shard.run(changes.emails, Since(middle)).created == (3,)


def test_a_limit_ends_between_modseqs(shard):
    answer = shard.run(changes.emails, Since(2, 4))
    assert answer.created == (1, 2, 3, 4)
    assert answer.has_more
    answer = shard.run(changes.emails, Since(answer.new_modseq, 6))
    assert answer.created == (5, 6, 7, 8, 9, 10)
    assert not answer.has_more


def test_a_modseq_with_more_than_the_limit_is_split_when_asked(shard):
    since = shard.run(accounts.state).email
    every = array("I", range(1, 11))
    shard.run(flags.store_flags, StoreFlags(1, every, FlagChange.ADD, Flags(1)))
    assert fails(shard, changes.emails, Since(since, 4))
    found = []
    step = Since(since, 4, split=True)
    for _ in range(5):
        answer = shard.run(changes.emails, step)
        found += answer.updated
        if not answer.has_more:
            break
        step = Since(answer.new_modseq, 4, answer.after, split=True)
    assert found == list(range(1, 11))
    assert answer.new_modseq == shard.run(accounts.state).email


@pytest.mark.parametrize("since", [-1, 10_000])
def test_a_state_that_never_was_is_refused(shard, since):
    assert fails(shard, changes.emails, Since(since))
    assert fails(shard, changes.threads, Since(since))
    assert fails(shard, changes.mailboxes, Since(since))


def test_only_counts_is_told_of_mailboxes(shard):
    since = shard.run(accounts.state).mailbox
    shard.deliver(30)
    assert shard.run(changes.mailboxes, Since(since)).only_counts
    shard.run(mailboxes.change, MailboxPatch(1, sort_order=9))
    assert not shard.run(changes.mailboxes, Since(since)).only_counts


def test_only_counts_is_not_told_to_who_stopped_before_a_property_changed(shard):
    made = [shard.run(mailboxes.create, NewMailbox(n))[0].mailbox_id for n in "ab"]
    since = shard.run(accounts.state).mailbox
    shard.run(mailboxes.change, MailboxPatch(1, sort_order=9))
    for box in made:  # stands between the two changes of the inbox
        shard.run(mailboxes.change, MailboxPatch(box, sort_order=9))
    shard.deliver(30)
    first = shard.run(changes.mailboxes, Since(since, 1))
    assert (first.updated, first.has_more) == ((made[0],), True)
    second = shard.run(changes.mailboxes, Since(first.new_modseq, 1, first.after))
    assert (second.updated, second.has_more) == ((made[1],), True)
    last = shard.run(changes.mailboxes, Since(second.new_modseq, 1, second.after))
    assert (last.updated, last.has_more, last.after) == ((1,), False, None)
    assert not last.only_counts
    shard.deliver(31)
    assert shard.run(changes.mailboxes, Since(last.new_modseq, 1)).only_counts


def test_a_flag_that_counts_nothing_leaves_mailboxes_alone(shard):
    before = shard.run(accounts.state)
    patch = EmailPatch(1, add_keywords=("$flagged",))
    shard.run(flags.update, ([patch], None))
    after = shard.run(accounts.state)
    assert after.email > before.email
    assert (after.mailbox, after.thread) == (before.mailbox, before.thread)


def test_pruned_tombstones_are_remembered_as_a_floor(shard):
    box, _ = shard.run(mailboxes.create, NewMailbox("gone"))
    old = shard.run(accounts.state).modseq
    shard.run(flags.destroy, ([1, 2], None))
    shard.run(copies.destroy_mailbox, (box.mailbox_id, True))
    floor = shard.run(accounts.state).modseq
    shard.now += 31 * DAY
    shard.run(flags.destroy, ([3], None))
    while shard.run(prune.prune_tombstones, 30):
        pass
    assert shard.rows("SELECT DISTINCT modseq > ? FROM destroyed", floor) == [(1,)]
    for unit in (changes.emails, changes.threads, changes.mailboxes):
        assert fails(shard, unit, Since(old))
        assert not shard.run(unit, Since(floor)).has_more
    assert shard.run(changes.emails, Since(floor)).destroyed == (3,)
    assert not shard.run(messages.delta, (1, old)).complete
    assert shard.run(messages.vanished, (1, old)) is None
    assert shard.run(messages.delta, (1, floor)).vanished == (3,)
    assert shard.run(messages.vanished, (1, floor)) == (3,)


def test_what_did_not_change_since_is_told_so_below_the_floor(shard):
    box, _ = shard.run(mailboxes.create, NewMailbox("quiet"))
    states, highest = shard.run(accounts.state), box.highestmodseq
    shard.run(flags.destroy, ([1], None))
    shard.now += 31 * DAY
    shard.run(prune.prune_tombstones, 30)
    assert fails(shard, changes.emails, Since(states.email))
    quiet = shard.run(changes.identities, Since(states.identity))
    assert (quiet.updated, quiet.new_modseq) == ((), states.identity)
    assert not shard.run(changes.submissions, Since(states.submission)).created
    for unit in (messages.delta, messages.quick_delta):
        delta = shard.run(unit, (box.mailbox_id, highest))
        assert delta.complete
        assert (delta.changed, delta.vanished) == ((), ())
    assert shard.run(messages.vanished, (box.mailbox_id, highest)) == ()


def test_pruning_keeps_what_is_young(shard):
    shard.run(flags.destroy, ([1, 2], None))
    shard.now += 29 * DAY
    assert not shard.run(prune.prune_tombstones, 30)
    assert shard.run(changes.emails, Since(12)).destroyed == (1, 2)


def test_keys_of_threads_that_are_gone_are_pruned(shard):
    shard.run(flags.destroy, ([1, 9], None))
    key = prune.FIRST_KEY
    while key is not None:
        key = shard.run(prune.prune_keys, key)
    assert shard.rows("SELECT count(*) FROM thread_key") == [(8,)]


def test_pruning_goes_in_pieces(shard, monkeypatch):
    shard.run(flags.destroy, (list(range(1, 11)), None))
    for number in range(50, 56):
        shard.deliver(number, acceptance=b"%d" % number)
        shard.now += 1
    shard.now += 40 * DAY
    for name, statement in pieces(3).items():
        monkeypatch.setattr(prune, name, statement)
    rounds = 1
    while shard.run(prune.prune_tombstones, 30):
        rounds += 1
    assert rounds == 7  # of 20 rows in one table
    assert shard.rows("SELECT count(*) FROM destroyed") == [(0,)]
    key, rounds = prune.FIRST_KEY, 0
    while key is not None:
        key, rounds = shard.run(prune.prune_keys, key), rounds + 1
    assert rounds == 6  # of 16 keys
    assert shard.rows("SELECT count(*) FROM thread_key") == [(6,)]
    gone = []
    while not gone or gone[-1]:
        gone.append(shard.run(prune.forget_delivered, 7))
    assert gone == [4, 2, 0]


def pieces(size):
    """Return what the units work with when a piece is this small."""
    source = pathlib.Path(prune.__file__).read_text()
    scope = {"__name__": "small"}
    exec(source.replace("PIECE = 5000", f"PIECE = {size}"), scope)
    return {name: scope[name] for name in ("PIECE", "DROP", "LATEST", "KEYS")}


def test_applied_acceptances_are_forgotten_after_their_time(shard):
    shard.deliver(40, acceptance=b"x")
    shard.now += 6 * DAY
    assert shard.run(prune.forget_delivered, 7) == 0
    shard.now += 2 * DAY
    assert shard.run(prune.forget_delivered, 7) == 1


def test_accounts_are_listed_in_pages():
    shard = Shard(1, 2, 5)
    assert shard.run(prune.account_ids, (0, 2)) == (1, 2)
    assert shard.run(prune.account_ids, (2, 2)) == (5,)
