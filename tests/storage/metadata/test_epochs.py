"""A restore must not be mistaken for the account that clients knew."""

from __future__ import annotations

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import accounts, changes, check, epochs, mailboxes, messages
from storage.model import NewMailbox, Since
from tests.lib.mail_model import load_boxes
from tests.lib.shard import Shard


def test_a_raised_epoch_makes_everything_new():
    shard = Shard()
    shard.deliver(1)
    before, state = load_boxes(shard), shard.run(accounts.state)
    after = shard.run(epochs.raise_epoch)
    assert (after.epoch, after.modseq) == (state.epoch + 1, state.modseq + 1)
    now = load_boxes(shard)
    validities = [box.uidvalidity for box in now.values()]
    assert len(set(validities)) == len(validities)
    assert min(validities) > max(box.uidvalidity for box in before.values())
    assert shard.run(mailboxes.create, NewMailbox("x"))[0].uidvalidity > max(validities)
    assert not shard.run(messages.delta, (1, state.modseq)).complete
    for unit in (
        changes.mailboxes,
        changes.emails,
        changes.threads,
        changes.identities,
        changes.submissions,
    ):
        with pytest.raises(MailError) as caught:
            shard.run(unit, Since(state.modseq))
        assert caught.value.kind is Kind.CANNOT_CALCULATE_CHANGES
    assert shard.run(check.check_account) == ()
