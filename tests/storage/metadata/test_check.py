"""``storage check`` finds what it claims to find, and mends counters."""

from __future__ import annotations

import pytest

from storage.metadata import accounts, check, copies
from tests.lib.shard import Shard, keys

DAMAGE = {
    "UPDATE mailbox SET messages = 9 WHERE mailbox_id = 1": "messages is 9, not 4",
    "UPDATE mailbox SET unread_threads = 7 WHERE mailbox_id = 1": "unread_threads",
    "UPDATE mailbox SET size = 0 WHERE mailbox_id = 1": "size is 0",
    "DELETE FROM mailbox_thread WHERE thread_id = 1": "thread 1 is wrong",
    "UPDATE account SET quota_used = 1": "counters say 4 of 1",
    "UPDATE mailbox SET uidnext = 2 WHERE mailbox_id = 1": "uidnext",
    "UPDATE mailbox SET highestmodseq = 2 WHERE mailbox_id = 1": "highestmodseq",
    "UPDATE email_state SET modseq = 99 WHERE email_id = 1": "above the account's",
    "UPDATE email_state SET shown = 0 WHERE email_id = 1": "showing is wrong",
    "UPDATE email_state SET system = 1 WHERE email_id = 1": "repeats its email wrongly",
    "UPDATE mailbox_email SET thread_id = 9 WHERE uid = 1": "repeats its email",
    "UPDATE mailbox_email SET email_id = 2 WHERE uid = 1": "twice in one mailbox",
    "UPDATE mailbox_email SET email_id = 77 WHERE uid = 1": "without an email",
    "UPDATE mailbox_email SET mailbox_id = 77 WHERE uid = 1": "without a mailbox",
    "DELETE FROM mailbox_email WHERE uid = 1": "in no mailbox",
    "DELETE FROM email WHERE email_id = 1": "without its facts",
    "DELETE FROM email_state WHERE email_id = 1": "without its state",
    "DELETE FROM blob": "without its blob",
    "UPDATE mailbox SET parent_id = 77 WHERE mailbox_id = 2": "without its parent",
    "UPDATE account SET inbox_id = 3": "without INBOX",
    "UPDATE account SET last_email = 1": "email id above the last",
    "UPDATE expunged SET modseq = 88": "expunge above highestmodseq",
    "UPDATE mailbox_email SET deleted = 3 WHERE uid = 1": "out of range",
}
COUNTERS = tuple(DAMAGE)[:5]


@pytest.fixture
def shard():
    shard = Shard()
    for number in range(1, 5):
        shard.deliver(number, thread_keys=keys(number, number % 2))
    shard.deliver(9, mailboxes=(2,))
    shard.run(copies.empty_some, (2, 5))
    return shard


def test_an_intact_account_has_no_findings(shard):
    assert shard.run(check.check_account) == ()
    assert shard.run(check.check_shard) == ()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(shard, damage):
    shard.rows(damage)
    findings = shard.run(check.check_account)
    assert any(DAMAGE[damage] in finding for finding in findings), findings


def test_an_upload_without_its_blob_is_found(shard):
    shard.rows("INSERT INTO blob_owner VALUES (x'00', 1, 2, 0, 9)")
    assert "not there" in shard.run(check.check_shard)[0]


@pytest.mark.parametrize("damage", COUNTERS)
def test_counters_are_mended(shard, damage):
    shard.rows(damage)
    before = shard.run(accounts.state)
    modseq = shard.run(check.repair_counters)
    assert shard.run(check.check_account) == ()
    assert modseq == before.modseq + 1  # clients hear of it
    assert shard.run(accounts.state).mailbox == modseq
