"""Adding messages: cost, idempotence, quota, roles, threads."""

from __future__ import annotations

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import accounts, check, copies, flags, mailboxes, messages
from storage.metadata.deliver import add_email, prepare_account
from storage.model import DELETED_BIT, Column, Flags, NewAccount
from tests.lib.shard import NOW, Shard, delivery, keys

MOST_STATEMENTS = 10


def kind_of(shard: Shard, work, args=None, account=1) -> Kind:
    with pytest.raises(MailError) as caught:
        shard.run(work, args, account)
    return caught.value.kind


def test_a_delivery_costs_ten_statements_at_most():
    shard = Shard()
    shard.deliver(1)
    new = shard.count_statements(lambda: shard.deliver(2))
    reply = shard.count_statements(lambda: shard.deliver(3, thread_keys=keys(3, 2)))
    assert new <= MOST_STATEMENTS
    assert reply <= MOST_STATEMENTS


def test_an_acceptance_is_applied_once():
    shard = Shard()
    first = shard.deliver(1, acceptance=b"a1")
    again = shard.deliver(1, acceptance=b"a1")
    assert again.duplicate
    assert not first.duplicate
    assert (again.email_id, again.placed) == (first.email_id, first.placed)
    assert shard.run(accounts.state).modseq == first.modseq
    assert not shard.deliver(1, acceptance=b"a2").duplicate


def test_a_repeated_acceptance_of_a_message_that_is_gone_is_still_one():
    shard = Shard()
    first = shard.deliver(1, acceptance=b"a1")
    shard.run(flags.destroy, ([first.email_id], None))
    again = shard.deliver(1, acceptance=b"a1")
    assert again.duplicate
    assert again.placed == ()


def test_quota_refuses_what_does_not_fit_and_leaves_nothing():
    shard = Shard()
    shard.deliver(1, size=600)
    shard.run(accounts.set_quota, 1000)
    before = shard.run(accounts.state)
    assert kind_of(shard, add_email, delivery(2, size=401)) is Kind.OVER_QUOTA
    assert shard.run(accounts.state) == before
    shard.deliver(2, size=400)
    shard.deliver(3, size=400, check_quota=False)
    assert shard.run(accounts.quota) == (1000, 1400)


def test_a_copy_that_needs_room_is_refused():
    shard = Shard()
    shard.deliver(1, size=600)
    shard.run(accounts.set_quota, 1000)
    shard.run(copies.copy, (1, [1], 2))  # a membership takes no room
    assert kind_of(shard, copies.copy, (1, [1], 2)) is Kind.OVER_QUOTA


def test_a_missing_role_mailbox_is_made():
    shard = Shard()
    junk = next(b for b in shard.run(mailboxes.list_all).mailboxes if b.role == "junk")
    shard.run(copies.destroy_mailbox, (junk.mailbox_id, False))
    added = shard.deliver(1, roles=("junk", "archive"))
    boxes = {b.mailbox_id: b for b in shard.run(mailboxes.list_all).mailboxes}
    made = boxes[added.placed[0][0]]
    assert (made.role, made.name, made.messages) == ("junk", "Junk", 1)
    assert made.uidvalidity > junk.uidvalidity
    assert boxes[added.placed[1][0]].role == "archive"


def test_a_role_mailbox_takes_another_name_when_its_own_is_taken():
    shard = Shard()
    junk = next(b for b in shard.run(mailboxes.list_all).mailboxes if b.role == "junk")
    shard.run(copies.destroy_mailbox, (junk.mailbox_id, False))
    shard.run(mailboxes.create_path, ("Junk", ""))
    box = shard.deliver(1, roles=("junk",)).placed[0][0]
    boxes = {b.mailbox_id: b for b in shard.run(mailboxes.list_all).mailboxes}
    assert boxes[box].name == "Junk 2"


@pytest.mark.parametrize("where", [(99,), ()])
def test_a_mailbox_that_is_not_there_refuses_the_message(where):
    shard = Shard()
    before = shard.run(accounts.state)
    expected = Kind.NOT_FOUND if where else Kind.INVALID
    assert kind_of(shard, add_email, delivery(1, mailboxes=where)) is expected
    assert shard.run(accounts.state) == before
    assert shard.run(check.check_account) == ()


def test_an_account_that_is_not_there():
    shard = Shard()
    assert kind_of(shard, add_email, delivery(1), account=2) is Kind.NOT_FOUND
    assert kind_of(shard, mailboxes.list_all, account=2) is Kind.NOT_FOUND


def test_a_mailbox_named_twice_gets_the_message_once():
    shard = Shard()
    assert len(shard.deliver(1, mailboxes=(1, 2, 1), roles=("inbox",)).placed) == 2
    assert shard.run(check.check_account) == ()


def test_preparing_an_account_again_changes_nothing():
    shard = Shard()
    before = shard.run(accounts.state)
    again = shard.run(prepare_account, NewAccount("other@example.org", quota_limit=5))
    assert again == before
    names = [box.path for box in shard.run(mailboxes.list_all).mailboxes]
    assert names == ["INBOX", "Archive", "Drafts", "Junk", "Sent", "Trash"]


def test_a_message_appended_deleted_is_seen_by_imap_alone():
    shard = Shard()
    added = shard.deliver(1, flags=Flags(DELETED_BIT | 1, ("work",)))
    box = shard.run(mailboxes.list_all).mailboxes[0]
    assert (box.messages, box.deleted, box.total_emails, box.total_threads) == (
        (1, 1, 0, 0)
    )
    assert shard.run(messages.get_states, [added.email_id]) == {}


def test_keywords_of_a_new_message_are_checked_and_put_in_order():
    shard = Shard()
    flags_ = Flags(0, ("$Seen".lower(), "work", "Later", "work"))
    added = shard.deliver(1, flags=flags_)
    _, found, _ = shard.run(messages.get_states, [added.email_id])[added.email_id]
    assert found == Flags(1, ("later", "work"))
    assert shard.run(check.check_account) == ()
    for words, kind in ((("a b",), Kind.INVALID), (("",), Kind.INVALID)):
        bad = delivery(2, flags=Flags(0, words))
        assert kind_of(shard, add_email, bad) is kind


def test_text_of_any_kind_is_stored():
    shard = Shard()
    strange = "nul \0 lone \udc80 \ud800"
    added = shard.deliver(1, base_subject=strange, sort_from=strange, list_json=b"\0")
    row = shard.run(messages.read_rows, ([added.email_id], Column.LIST))
    assert row[added.email_id].list_json == b"\0"


# --- threads ----------------------------------------------------------------------


def test_replies_join_the_oldest_thread_and_threads_never_merge():
    shard = Shard()
    first = shard.deliver(1, thread_keys=keys(1)).thread_id
    second = shard.deliver(2, thread_keys=keys(2)).thread_id
    assert first != second
    both = shard.deliver(3, thread_keys=keys(3, 2, 1)).thread_id
    assert both == first
    assert shard.deliver(4, thread_keys=keys(4, 2)).thread_id == second
    assert shard.deliver(5, thread_keys=keys(5, 3)).thread_id == first


def test_a_reply_that_arrives_first_gathers_what_it_answers():
    shard = Shard()
    reply = shard.deliver(1, thread_keys=keys(2, 1)).thread_id
    assert shard.deliver(2, thread_keys=keys(1)).thread_id == reply


def test_a_thread_that_is_gone_does_not_come_back():
    shard = Shard()
    first = shard.deliver(1, thread_keys=keys(1))
    shard.run(flags.destroy, ([first.email_id], None))
    lone = shard.deliver(2, thread_keys=keys(1)).thread_id
    assert lone != first.thread_id
    shard.run(flags.destroy, ([2], None))
    reply = shard.deliver(3, thread_keys=keys(3, 1)).thread_id
    assert reply not in {first.thread_id, lone}
    assert shard.deliver(4, thread_keys=keys(1)).thread_id == reply


def test_messages_without_ids_stay_alone():
    shard = Shard()
    threads = {shard.deliver(n, thread_keys=()).thread_id for n in range(1, 4)}
    assert len(threads) == 3


def test_accounts_do_not_share_threads_or_blobs_rows():
    shard = Shard(1, 2)
    shard.deliver(1, account=1)
    shard.deliver(2, account=1)
    theirs = shard.deliver(1, account=2)
    assert (theirs.email_id, theirs.thread_id) == (1, 1)
    assert shard.rows("SELECT count(*) FROM blob") == [(2,)]
    assert shard.run(check.check_account, None, 2) == ()


def test_received_at_and_save_date_are_kept():
    shard = Shard()
    shard.deliver(1, received_at=NOW - 1000)
    args = (1, 1, 1, Column.BASIC, 10)
    ((uid, row),) = shard.run(messages.read_page, args)
    assert (uid, row.received_at, row.save_date) == (1, NOW - 1000, NOW)
