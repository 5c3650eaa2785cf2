"""No row points into a segment that was taken out of use."""

from __future__ import annotations

import dataclasses

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import blobs, retired
from tests.lib.shard import NOW, Shard, blob_ref, delivery

DAY = 86_400


@pytest.fixture
def shard():
    return Shard(1, 2)


def refused(shard, work, args, account=1):
    with pytest.raises(MailError) as caught:
        shard.run(work, args, account)
    return caught.value.kind is Kind.UNAVAILABLE


def test_a_delivery_into_a_retired_segment_is_refused_as_a_whole(shard):
    shard.run(retired.retire, [1], 0)
    before = shard.rows("SELECT modseq, message_count FROM account")
    with pytest.raises(MailError) as caught:
        shard.deliver(1)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert shard.rows("SELECT modseq, message_count FROM account") == before
    assert shard.rows("SELECT * FROM blob") == []


def test_an_upload_into_a_retired_segment_is_refused(shard):
    shard.run(retired.retire, [1], 0)
    assert refused(shard, blobs.add_upload, (blob_ref(b"x"), DAY))


def test_known_content_is_taken_wherever_its_copy_lies(shard):
    shard.deliver(1)
    shard.run(retired.retire, [7], 0)
    ref = dataclasses.replace(delivery(1).email.blob, segment=7)
    shard.deliver(1, account=2, blob=ref)
    assert shard.rows("SELECT segment FROM blob") == [(1,)]


def test_nothing_moves_into_a_retired_segment(shard):
    shard.deliver(1)
    old = delivery(1).email.blob
    new = dataclasses.replace(old, segment=5)
    shard.run(retired.retire, [5], 0)
    assert shard.run(blobs.move_blobs, [(old, new)], 0) == 0
    assert shard.run(blobs.find_blob, old.hash) == old


def test_fences_are_kept_until_they_are_old(shard):
    shard.run(retired.retire, [1, 2], 0)
    shard.now += DAY
    shard.run(retired.retire, [2, 3], 0)  # the first time counts
    since = shard.run(retired.retired_since, [1, 2, 3, 4], 0)
    assert since == {1: NOW, 2: NOW, 3: NOW + DAY}
    shard.run(retired.forget_retired, ([1, 2, 3], NOW + DAY), 0)
    assert shard.run(retired.list_retired, (0, 10), 0) == (3,)


def test_background_work_goes_on_where_it_was(shard):
    assert shard.run(retired.position, "work", 0) == 0
    shard.run(retired.set_position, ("work", 1 << 62), 0)
    shard.run(retired.set_position, ("other", 3), 0)
    assert shard.run(retired.position, "work", 0) == 1 << 62
