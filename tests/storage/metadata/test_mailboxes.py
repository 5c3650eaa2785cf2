"""Mailboxes: names, places, roles, subscriptions, removal."""

from __future__ import annotations

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import accounts, boxes, check, copies, mailboxes
from storage.model import MailboxPatch, NewMailbox
from tests.lib.shard import Shard


@pytest.fixture
def shard():
    return Shard()


def make(shard, path, role=""):
    return shard.run(mailboxes.create_path, (path, role))[0]


def paths(shard):
    return [box.path for box in shard.run(mailboxes.list_all).mailboxes]


def kind_of(shard, work, args):
    before = shard.run(accounts.state)
    with pytest.raises(MailError) as caught:
        shard.run(work, args)
    assert shard.run(accounts.state) == before
    return caught.value.kind


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "nul\0",
        "bell\a",
        "line\nbreak",
        "del\x7f",
        "c1\x85",
        "\ud800",
        "é" * 128,
        "sep\u2028",
    ],
)
def test_names_that_no_mailbox_may_have(shard, name):
    assert kind_of(shard, mailboxes.create, NewMailbox(name)) is Kind.INVALID
    assert kind_of(shard, mailboxes.change, MailboxPatch(2, name=name)) is Kind.INVALID


@pytest.mark.parametrize(
    "name", ["100%", "a*b", "Größe", "日本語", ".", "..", " x ", "#n"]
)
def test_names_that_are_fine(shard, name):
    assert shard.run(mailboxes.create, NewMailbox(name))[0].name == name


def test_names_are_compared_in_nfc(shard):
    shard.run(mailboxes.create, NewMailbox("Zoe\u0308"))
    again = NewMailbox("Zo\u00eb")
    assert kind_of(shard, mailboxes.create, again) is Kind.ALREADY_EXISTS


@pytest.mark.parametrize("name", ["inbox", "InBox", "INBOX"])
def test_inbox_is_there_in_any_case(shard, name):
    assert kind_of(shard, mailboxes.create, NewMailbox(name)) is Kind.ALREADY_EXISTS
    assert kind_of(shard, mailboxes.create_path, (name, "")) is Kind.ALREADY_EXISTS
    box = make(shard, "other")
    patch = MailboxPatch(box.mailbox_id, name=name)
    assert kind_of(shard, mailboxes.change, patch) is Kind.ALREADY_EXISTS
    assert make(shard, f"{name}/below").path == "INBOX/below"


def test_create_makes_missing_parents(shard):
    box = make(shard, "a/b/c/")
    assert box.path == "a/b/c"
    assert paths(shard)[-3:] == ["a", "a/b", "a/b/c"]
    assert kind_of(shard, mailboxes.create_path, ("a/b", "")) is Kind.ALREADY_EXISTS
    assert kind_of(shard, mailboxes.create_path, ("a//b", "")) is Kind.INVALID
    assert make(shard, "snoozed", "important").role == "important"
    assert kind_of(shard, mailboxes.create_path, ("x", "important")) is Kind.INVALID


def test_a_name_that_comes_back_has_a_greater_uidvalidity(shard):
    first = make(shard, "again")
    shard.run(copies.destroy_mailbox, (first.mailbox_id, False))
    second = make(shard, "again")
    assert second.uidvalidity > first.uidvalidity
    assert second.mailbox_id > first.mailbox_id


def test_depth_and_number_are_limited(shard, monkeypatch):
    deepest = "/".join("x" * boxes.MAX_DEPTH)
    box = make(shard, deepest)
    below = NewMailbox("y", box.mailbox_id)
    assert kind_of(shard, mailboxes.create, below) is Kind.INVALID
    top = next(b for b in shard.run(mailboxes.list_all).mailboxes if b.path == "x")
    other = make(shard, "other")
    patch = MailboxPatch(top.mailbox_id, parent_id=other.mailbox_id)
    assert kind_of(shard, mailboxes.change, patch) is Kind.INVALID
    monkeypatch.setattr(mailboxes, "MAX_MAILBOXES", len(paths(shard)))
    assert kind_of(shard, mailboxes.create, NewMailbox("z")) is Kind.LIMIT


def test_a_mailbox_cannot_be_inside_itself(shard):
    make(shard, "a/b/c")
    ids = {box.path: box.mailbox_id for box in shard.run(mailboxes.list_all).mailboxes}
    for parent in ("a", "a/b", "a/b/c"):
        patch = MailboxPatch(ids["a"], parent_id=ids[parent])
        assert kind_of(shard, mailboxes.change, patch) is Kind.INVALID
    assert kind_of(shard, copies.rename_path, ("a", "a/b/d")) is Kind.INVALID
    assert kind_of(shard, mailboxes.change, MailboxPatch(ids["a"], parent_id=77)) is (
        Kind.NOT_FOUND
    )


def test_inbox_stays_what_it_is(shard):
    for patch in (
        MailboxPatch(1, name="x"),
        MailboxPatch(1, parent_id=2),
        MailboxPatch(1, role=""),
        MailboxPatch(2, role="inbox"),
    ):
        assert kind_of(shard, mailboxes.change, patch) is Kind.FORBIDDEN
    assert kind_of(shard, copies.destroy_mailbox, (1, True)) is Kind.FORBIDDEN


def test_roles_are_unique_and_known(shard):
    box = make(shard, "x")
    for role in ("sent", "nonsense"):
        patch = MailboxPatch(box.mailbox_id, role=role)
        assert kind_of(shard, mailboxes.change, patch) is Kind.INVALID
    assert shard.run(mailboxes.change, MailboxPatch(3, role=""))[2]
    assert shard.run(mailboxes.change, MailboxPatch(box.mailbox_id, role="sent"))[2]


def test_a_change_of_nothing_leaves_the_modseq_alone(shard):
    before = shard.run(accounts.state)
    patch = MailboxPatch(2, name="Drafts", parent_id=-1, subscribed=True)
    assert shard.run(mailboxes.change, patch)[1:] == (before.modseq, False)
    assert shard.run(mailboxes.subscribe, ("Drafts", True)) == (before.modseq, False)
    assert shard.run(mailboxes.subscribe, ("nothing", False)) == (before.modseq, False)
    assert shard.run(accounts.state) == before


def test_subscriptions_outlive_their_mailbox(shard):
    box = make(shard, "list")
    assert "list" not in shard.run(mailboxes.subscriptions)
    shard.run(mailboxes.subscribe, ("list", True))
    shard.run(copies.destroy_mailbox, (box.mailbox_id, False))
    assert "list" in shard.run(mailboxes.subscriptions)
    assert make(shard, "list").subscribed
    shard.run(mailboxes.subscribe, ("list", False))
    assert "list" not in shard.run(mailboxes.subscriptions)
    shard.run(mailboxes.subscribe, ("never/was", True))
    assert "never/was" in shard.run(mailboxes.subscriptions)


def test_destroying_needs_it_empty_and_childless(shard):
    box = make(shard, "a")
    below = make(shard, "a/b")
    shard.deliver(1, mailboxes=(below.mailbox_id, 1))
    args = (box.mailbox_id, True)
    assert kind_of(shard, copies.destroy_mailbox, args) is Kind.HAS_CHILDREN
    args = (below.mailbox_id, False)
    assert kind_of(shard, copies.destroy_mailbox, args) is Kind.NOT_EMPTY
    assert kind_of(shard, copies.destroy_mailbox, (99, True)) is Kind.NOT_FOUND
    shard.run(copies.destroy_mailbox, (below.mailbox_id, True))
    assert shard.run(accounts.state).message_count == 1  # it lies in INBOX too
    shard.run(copies.destroy_mailbox, (box.mailbox_id, False))
    assert shard.run(check.check_account) == ()


def test_rename_makes_parents_and_keeps_the_uidvalidity(shard):
    box = make(shard, "a")
    make(shard, "a/b")
    renamed, _ = shard.run(copies.rename_path, ("a", "x/y/a"))
    assert (renamed.mailbox_id, renamed.uidvalidity) == (
        box.mailbox_id,
        box.uidvalidity,
    )
    assert paths(shard)[-4:] == ["x", "x/y", "x/y/a", "x/y/a/b"]
    for args, kind in (
        (("nothing", "z"), Kind.NOT_FOUND),
        (("x", "Sent"), Kind.ALREADY_EXISTS),
        (("x", "inbox"), Kind.ALREADY_EXISTS),
        (("x", ""), Kind.INVALID),
    ):
        assert kind_of(shard, copies.rename_path, args) is kind


def test_renaming_inbox_moves_what_it_holds(shard):
    make(shard, "INBOX/below")
    for number in (1, 2):
        shard.deliver(number)
    box, _ = shard.run(copies.rename_path, ("inbox", "INBOX/old"))
    assert box.messages == 2
    assert paths(shard)[:3] == ["INBOX", "INBOX/below", "INBOX/old"]
    assert shard.run(mailboxes.list_all).mailboxes[0].messages == 0
    assert shard.run(check.check_account) == ()
