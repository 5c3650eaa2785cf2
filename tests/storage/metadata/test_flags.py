"""STORE and Email/set: conditions, refusals, what stays untouched."""

from __future__ import annotations

from array import array

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import accounts, check, copies, flags, keywords, messages
from storage.model import (
    DELETED_BIT,
    EmailPatch,
    FlagChange,
    Flags,
    StoreFlags,
)
from tests.lib.mail_model import load_boxes
from tests.lib.shard import Shard


@pytest.fixture
def shard():
    shard = Shard()
    for number in range(1, 6):
        shard.deliver(number)
    return shard


def store(shard, uids, how, wanted, **more):
    args = StoreFlags(1, array("I", uids), how, wanted, **more)
    return shard.run(flags.store_flags, args)


def kind_of(shard, work, args):
    before = shard.run(accounts.state)
    with pytest.raises(MailError) as caught:
        shard.run(work, args)
    assert shard.run(accounts.state) == before
    return caught.value.kind


def test_what_changes_nothing_leaves_the_modseq_alone(shard):
    store(shard, [1, 2], FlagChange.ADD, Flags(1))
    before = shard.run(accounts.state)
    result = store(shard, [1, 2], FlagChange.ADD, Flags(1))
    assert result.changed == ()
    assert result.modseq == before.modseq
    shard.run(flags.update, ([EmailPatch(1, add_keywords=("$seen",))], None))
    shard.run(copies.expunge, (1, [1, 2]))
    shard.run(copies.copy, (1, [77], 2))
    assert shard.run(accounts.state) == before


def test_unchangedsince_is_judged_message_by_message(shard):
    at = shard.run(accounts.state).modseq
    store(shard, [2], FlagChange.ADD, Flags(4))
    shard.run(copies.copy, (1, [3], 2))  # not a change of message 3 in mailbox 1
    result = store(shard, [1, 2, 3], FlagChange.ADD, Flags(1), unchanged_since=at)
    assert result.modified == (2,)
    assert [row[0] for row in result.changed] == [1, 3]


def test_unchangedsince_sees_a_change_made_in_another_mailbox(shard):
    shard.run(copies.copy, (1, [1], 2))
    at = shard.run(accounts.state).modseq
    args = StoreFlags(2, array("I", [1]), FlagChange.ADD, Flags(4))
    shard.run(flags.store_flags, args)
    result = store(shard, [1], FlagChange.ADD, Flags(1), unchanged_since=at)
    assert result.modified == (1,)


def test_system_flags_may_be_named_as_keywords(shard):
    result = store(shard, [1], FlagChange.ADD, Flags(0, ("$Flagged".lower(), "Work")))
    assert result.changed[0][3:] == (4, ("work",))


@pytest.mark.parametrize(
    "word",
    ["", "two words", "a(b", 'quo"te', "back\\slash", "é", "x" * 256, "a%", "\0"],
)
def test_what_is_no_keyword_is_refused(shard, word):
    args = StoreFlags(1, array("I", [1]), FlagChange.ADD, Flags(0, (word,)))
    assert kind_of(shard, flags.store_flags, args) is Kind.INVALID


def test_keywords_are_limited(shard):
    many = tuple(f"k{n}" for n in range(keywords.MAX_KEYWORDS))
    store(shard, [1], FlagChange.ADD, Flags(0, many))
    args = StoreFlags(1, array("I", [1]), FlagChange.ADD, Flags(0, ("another",)))
    assert kind_of(shard, flags.store_flags, args) is Kind.LIMIT


def test_a_mailbox_that_is_not_there(shard):
    args = StoreFlags(99, array("I", [1]), FlagChange.ADD, Flags(1))
    assert kind_of(shard, flags.store_flags, args) is Kind.NOT_FOUND


def test_deleted_belongs_to_the_membership(shard):
    shard.run(copies.copy, (1, [1], 2))
    result = store(shard, [1], FlagChange.ADD, Flags(), deleted=True)
    assert result.changed[0][3] == DELETED_BIT
    states = shard.run(messages.get_states, [1])
    assert states[1][2] == (2,)
    assert load_boxes(shard)[2].deleted == 0


def test_a_mailbox_that_holds_the_email_hears_of_its_keywords(shard):
    shard.run(copies.copy, (1, [1], 2))
    before = load_boxes(shard)
    store(shard, [1], FlagChange.ADD, Flags(4))
    after = load_boxes(shard)
    for box in (1, 2):
        assert after[box].highestmodseq > before[box].highestmodseq
        assert after[box].modseq == before[box].modseq  # no count changed
    delta = shard.run(messages.delta, (2, before[2].highestmodseq))
    assert [(row[0], row[3]) for row in delta.changed] == [(1, 4)]


# --- Email/set ----------------------------------------------------------------------


def test_errors_of_one_patch_leave_the_others_alone(shard):
    patches = [
        EmailPatch(1, add_keywords=("$flagged",)),
        EmailPatch(2, set_mailboxes=()),
        EmailPatch(3, add_mailboxes=(99,)),
        EmailPatch(77, add_keywords=("x",)),
        EmailPatch(4, add_keywords=("no good",)),
        EmailPatch(5, add_mailboxes=(2,), remove_mailboxes=(1,)),
    ]
    result = shard.run(flags.update, (patches, None))
    assert result.updated == (1, 5)
    assert {key: kind for key, (kind, _) in result.errors} == {
        2: "INVALID",
        3: "NOT_FOUND",
        77: "NOT_FOUND",
        4: "INVALID",
    }
    states = shard.run(messages.get_states, [1, 2, 3, 4, 5])
    assert states[1][1] == Flags(4)
    assert [states[key][2] for key in (2, 3, 4, 5)] == [(1,), (1,), (1,), (2,)]
    assert shard.run(check.check_account) == ()


def test_a_patch_brings_back_a_membership_marked_deleted(shard):
    shard.run(copies.copy, (1, [1], 2))
    store(shard, [1], FlagChange.ADD, Flags(), deleted=True)
    shard.run(flags.update, ([EmailPatch(1, add_mailboxes=(1,))], None))
    assert sorted(shard.run(messages.get_states, [1])[1][2]) == [1, 2]
    assert shard.run(messages.view_head, (1, 1)).rows[0][0] == 1  # under the old uid


def test_an_email_that_jmap_does_not_show_is_not_found(shard):
    store(shard, [1], FlagChange.ADD, Flags(), deleted=True)
    patch = EmailPatch(1, add_keywords=("$seen",))
    for unit, args in ((flags.update, ([patch], None)), (flags.destroy, ([1], None))):
        assert shard.run(unit, args).errors[0][1][0] == "NOT_FOUND"


def test_if_in_state(shard):
    now = shard.run(accounts.state).email
    patch = EmailPatch(1, add_keywords=("$seen",))
    assert kind_of(shard, flags.update, ([patch], now - 1)) is Kind.STATE_MISMATCH
    assert kind_of(shard, flags.destroy, ([1], now - 1)) is Kind.STATE_MISMATCH
    assert shard.run(flags.update, ([patch], now)).updated == (1,)


def test_destroying_removes_every_membership_and_frees_the_quota(shard):
    shard.run(copies.copy, (1, [1], 2))
    used = shard.run(accounts.state).quota_used
    result = shard.run(flags.destroy, ([1], None))
    assert result.destroyed == (1,)
    assert shard.run(accounts.state).quota_used == used - 1001
    assert shard.run(messages.view_head, (2, 10)).rows == []
    assert shard.run(messages.vanished, (2, 0)) == (1,)
    assert shard.rows("SELECT count(*) FROM email WHERE email_id = 1") == [(0,)]
    assert shard.run(check.check_account) == ()


# --- COPY and MOVE ------------------------------------------------------------------


def test_a_copy_shares_the_email_and_a_second_one_is_new(shard):
    first = shard.run(copies.copy, (1, [2, 1], 2))
    assert (first.source_uids, first.target_uids) == ((1, 2), (1, 2))
    again = shard.run(copies.copy, (1, [1], 2))
    rows = {row[0]: row[1] for row in shard.run(messages.view_head, (2, 10)).rows}
    assert rows == {1: 1, 2: 2, 3: 6}
    assert again.target_uids == (3,)
    both = shard.run(messages.read_rows, ([1, 6], messages.Column.BASIC))
    assert both[1].blob == both[6].blob
    assert both[1].thread_id == both[6].thread_id


def test_a_move_keeps_the_email_and_gives_a_new_uid(shard):
    result = shard.run(copies.move, (1, [1], 2))
    assert shard.run(messages.view_head, (2, 10)).rows[0][:2] == (1, 1)
    assert result.uidvalidity == load_boxes(shard)[2].uidvalidity
    within = shard.run(copies.move, (1, [2], 1))
    assert (within.source_uids, within.target_uids) == ((2,), (6,))
    rows = shard.run(messages.view_head, (1, 10)).rows
    assert rows[-1][:2] == (6, 2)


@pytest.mark.parametrize("unit", [copies.copy, copies.move])
@pytest.mark.parametrize("boxes", [(99, 1), (1, 99)])
def test_copying_needs_both_mailboxes(shard, unit, boxes):
    assert kind_of(shard, unit, (boxes[0], [1], boxes[1])) is Kind.NOT_FOUND


def test_expunge_takes_only_what_is_marked_and_named(shard):
    store(shard, [1, 2, 3], FlagChange.ADD, Flags(), deleted=True)
    uids, modseq = shard.run(copies.expunge, (1, [2, 3, 4]))
    assert uids == (2, 3)
    assert modseq == shard.run(accounts.state).modseq
    assert shard.run(copies.deleted_uids, 1) == (1,)
