"""Who may read a blob, and what the collector may take."""

from __future__ import annotations

import dataclasses

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.metadata import blobs, collect, flags
from tests.lib.shard import Shard, blob_ref, delivery

DAY = 86_400


@pytest.fixture
def shard():
    return Shard(1, 2)


def refused(shard, account, ref):
    with pytest.raises(MailError) as caught:
        shard.run(blobs.find_blob, ref.hash, account)
    return caught.value.kind is Kind.NOT_FOUND


def test_a_blob_is_read_by_reference_alone(shard):
    ref = delivery(1).email.blob
    assert refused(shard, 1, ref)
    shard.deliver(1)
    assert shard.run(blobs.find_blob, ref.hash) == ref
    assert refused(shard, 2, ref)
    shard.run(flags.destroy, ([1], None))
    assert refused(shard, 1, ref)


def test_an_upload_expires(shard):
    ref = blob_ref(b"upload")
    assert shard.run(blobs.add_upload, (ref, DAY)) == ref
    assert shard.run(blobs.find_blob, ref.hash) == ref
    assert refused(shard, 2, ref)
    assert shard.run(blobs.expire_uploads, 10) == 0
    assert shard.run(collect.kept_blobs, [ref.hash]) == {ref.hash: ref}
    assert shard.run(collect.overdue_uploads) == 0
    shard.now += DAY
    assert refused(shard, 1, ref)
    assert shard.run(collect.kept_blobs, [ref.hash]) == {}
    assert shard.run(collect.overdue_uploads) == 1
    assert shard.run(blobs.expire_uploads, 10) == 1
    assert shard.run(collect.unowned, (b"", 10)) == (ref.hash, (ref.hash,))


def test_an_upload_again_lives_from_then_on(shard):
    ref = blob_ref(b"upload")
    shard.run(blobs.add_upload, (ref, DAY))
    shard.now += DAY - 1
    shard.run(blobs.add_upload, (ref, DAY))
    shard.now += DAY - 1
    assert shard.run(blobs.find_blob, ref.hash) == ref


def test_an_upload_of_known_content_is_where_it_was_first(shard):
    shard.deliver(1)
    known = delivery(1).email.blob
    again = dataclasses.replace(known, segment=9, offset=77)
    assert shard.run(blobs.add_upload, (again, DAY), 2) == known


def test_uploads_are_limited(shard, monkeypatch):
    monkeypatch.setattr(blobs, "MAX_UPLOADS", 2)
    for content in (b"a", b"b"):
        shard.run(blobs.add_upload, (blob_ref(content), DAY))
    with pytest.raises(MailError) as caught:
        shard.run(blobs.add_upload, (blob_ref(b"c"), DAY))
    assert caught.value.kind is Kind.LIMIT
    shard.run(blobs.add_upload, (blob_ref(b"c"), DAY), 2)
    monkeypatch.setattr(blobs, "MAX_UPLOADS", 20)
    monkeypatch.setattr(blobs, "MAX_UPLOAD_OCTETS", 2)
    with pytest.raises(MailError):
        shard.run(blobs.add_upload, (blob_ref(b"d"), DAY))


def test_the_collector_forgets_what_nobody_owns(shard):
    shard.deliver(1)
    shard.deliver(1, account=2)
    shard.deliver(2)
    one, two = delivery(1).email.blob, delivery(2).email.blob
    hashes = (one.hash, two.hash)
    shard.run(flags.destroy, ([1, 2], None))
    assert shard.run(collect.kept_blobs, hashes, 0) == {one.hash: one}
    assert shard.run(blobs.forget_blobs, hashes, 0) == (two.hash,)
    assert shard.run(blobs.find_blob, one.hash, 2) == one


def test_a_blob_that_moved_is_found_at_its_new_place(shard):
    shard.deliver(1)
    old = delivery(1).email.blob
    new = dataclasses.replace(old, segment=5, offset=4096)
    stale = dataclasses.replace(old, segment=4)
    assert shard.run(blobs.move_blobs, [(stale, new)], 0) == 0
    assert shard.run(blobs.move_blobs, [(old, new)], 0) == 1
    assert shard.run(blobs.find_blob, old.hash) == new
