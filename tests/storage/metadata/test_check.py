"""``storage check`` finds what it claims to find, and mends counters."""

from __future__ import annotations

import pytest

from mailserverd.core.errors import MailError
from storage.metadata import accounts, check, copies, repair
from storage.model import NewAccount
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
    "UPDATE mailbox_email SET uid = 0 WHERE uid = 1 AND mailbox_id = 1": "uid below 1",
    "UPDATE mailbox SET parent_id = 3 WHERE mailbox_id = 3": "within itself: 3",
    "UPDATE mailbox SET parent_id = 9 - mailbox_id WHERE mailbox_id IN (4, 5)": (
        "within itself: 4"
    ),
    "UPDATE mailbox SET role = 'sent' WHERE mailbox_id = 5": "role that an older",
    "UPDATE mailbox SET role = '' WHERE mailbox_id = 1": "without INBOX",
    "UPDATE mailbox SET uidvalidity = uidvalidity * 2 WHERE mailbox_id = 6": (
        "uidvalidity above"
    ),
    "UPDATE account SET email_modseq = modseq + 1": "modseq of a type, or",
    "UPDATE account SET email_modseq = 1": "modseq of an email above its type's",
    "UPDATE account SET mailbox_modseq = 1": "modseq of a mailbox above its type's",
    "UPDATE account SET tombstone_floor = 99": "floor",
    "UPDATE account SET modseq = 2": "above the account's",
    "UPDATE account SET last_thread = 0": "thread of a key above the last",
    "UPDATE account SET last_mailbox = 1": "mailbox id above the last",
    "UPDATE account SET last_identity = 0": "identity id above the last",
    "UPDATE identity SET modseq = 7": "modseq of an identity above its type's",
    "UPDATE email_state SET created_modseq = modseq + 1 WHERE email_id = 2": (
        "made or shown after"
    ),
    "INSERT INTO mailbox_thread VALUES (1, 77, 1, 1, 0)": "mailbox that is not there",
    "INSERT INTO expunged VALUES (1, 1, 2, 1, 0)": "expunge of a uid that is there",
    "UPDATE expunged SET uid = 40": "expunged uid not below uidnext",
    "INSERT INTO destroyed VALUES (1, 1, 3, 4, 1, 0, 0)": "end of mailbox",
    "INSERT INTO destroyed VALUES (1, 5, 3, 1, 1, 1, 0)": "end of email",
    "INSERT INTO destroyed VALUES (1, 3, 1, 1, 1, 0, 0)": "end of identity",
    "INSERT INTO destroyed VALUES (1, 2, 99, 1, 1, 1, 0)": "disappearance of an email",
    "UPDATE destroyed SET object_id = 90": "end of email above the last id",
    "DELETE FROM email_state": "without its state",
    "DELETE FROM email": "without its facts",
    "DELETE FROM mailbox": "membership without a mailbox",
    "DELETE FROM mailbox_email": "in no mailbox",
    "UPDATE mailbox_thread SET unread = 9": "count of thread 1 is wrong",
    "INSERT INTO mailbox_thread VALUES (1, 1, 77, 1, 0)": "count of thread 77 is wrong",
}
COUNTERS = tuple(DAMAGE)[:5]
UNMENDABLE = "DELETE FROM blob"  # by other rows; the blob store has it yet
KEEPS = {  # what may cost messages: how many of the four are left
    "DELETE FROM email WHERE email_id = 1": 3,
    "DELETE FROM email": 0,
}


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


def mended(shard, account=1):
    """Repair as the service does; return what was said."""
    lines, distrust = [], False
    for step in range(shard.run(repair.steps, None, account)):
        done = shard.run(repair.mend, step, account)
        lines += done.lines
        distrust = distrust or done.distrust
    if distrust:
        lines.append(shard.run(repair.renew, None, account))
    return lines


@pytest.mark.parametrize("damage", [one for one in DAMAGE if one != UNMENDABLE])
def test_damage_is_mended(shard, damage):
    shard.rows(damage)
    before = shard.rows("SELECT uid FROM mailbox_email")
    assert mended(shard), damage
    assert shard.run(check.check_account) == ()
    assert mended(shard) == []
    left = shard.rows("SELECT count(DISTINCT email_id) FROM mailbox_email")
    assert left == [(KEEPS.get(damage, 4),)], before
    assert shard.deliver(20).modseq == shard.run(accounts.state).modseq
    assert shard.run(check.check_account) == ()


@pytest.mark.parametrize("damage", COUNTERS)
def test_wrong_counters_are_no_reason_to_load_everything_anew(shard, damage):
    shard.rows(damage)
    before = shard.run(accounts.state)
    mended(shard)
    after = shard.run(accounts.state)
    assert (after.epoch, after.modseq) == (before.epoch, before.modseq + 1)
    assert after.mailbox == after.modseq  # clients hear of it


def test_clients_that_know_another_past_start_anew(shard):
    """A greater modseq than the account's has been told to them."""
    shard.rows("UPDATE account SET modseq = 2")
    before = shard.run(accounts.state)
    told = shard.rows("SELECT max(modseq) FROM email_state")[0][0]
    mended(shard)
    after = shard.run(accounts.state)
    assert after.epoch == before.epoch + 1
    assert after.modseq > told


def test_what_would_be_mended_is_said_and_not_done(shard):
    shard.rows("DELETE FROM mailbox_email WHERE uid = 1")
    before = list(shard.connection.iterdump())
    with pytest.raises(MailError) as caught:
        shard.run(repair.rehearse)
    assert list(shard.connection.iterdump()) == before
    assert caught.value.details["distrust"]
    lines = caught.value.details["lines"]
    assert lines == mended(shard)[:-1]
    assert any("put into INBOX" in line for line in lines)


@pytest.mark.parametrize("identity", [True, False])
def test_an_account_s_row_is_made_anew(shard, identity):
    before = shard.run(accounts.state)
    shard.rows("DELETE FROM account")
    if not identity:
        shard.rows("DELETE FROM identity")
    assert shard.run(check.orphans, "email", 0) == 1
    assert shard.run(check.orphans, "email", 1) is None
    shard.run(repair.restore, NewAccount("me@example.org"))
    mended(shard)
    shard.run(repair.renew)
    assert shard.run(check.check_account) == ()
    after = shard.run(accounts.state)
    assert after.message_count == before.message_count
    assert after.epoch > before.epoch
    assert after.modseq > before.modseq
    assert shard.run(repair.restore, NewAccount("me@example.org")).lines == ()
    assert shard.rows("SELECT email FROM identity") == [("me@example.org",)]


def test_one_account_is_mended_and_no_other():
    shard = Shard(1, 2)
    shard.deliver(1, account=1)
    shard.deliver(2, account=2)
    shard.rows("DELETE FROM mailbox_email WHERE account_id = 1")
    shard.rows("UPDATE mailbox SET messages = 7 WHERE account_id = 2")
    mended(shard, 1)
    assert shard.run(check.check_account, None, 1) == ()
    assert shard.run(check.check_account, None, 2) != ()
