"""Which emails a thread holds."""

from __future__ import annotations

from array import array

from storage.metadata import flags, threads
from storage.model import FlagChange, Flags, StoreFlags
from tests.lib.shard import NOW, Shard, keys


def test_threads_hold_their_shown_emails_oldest_first():
    shard = Shard()
    for number, received in ((1, 50), (2, 10), (3, 30)):
        shard.deliver(number, received_at=NOW + received, thread_keys=keys(1))
    shard.deliver(4)
    assert shard.run(threads.read, [4, 1, 9]) == {4: (4,), 1: (2, 3, 1)}
    mark = StoreFlags(1, array("I", [3, 4]), FlagChange.ADD, Flags(), deleted=True)
    shard.run(flags.store_flags, mark)
    for unit in (threads.read, threads.few):
        assert shard.run(unit, [1, 4]) == {1: (2, 1)}


def test_huge_threads_are_not_read_on_the_loop(monkeypatch):
    monkeypatch.setattr(threads, "MANY", 3)
    shard = Shard()
    for number in range(1, 4):
        shard.deliver(number, thread_keys=keys(1))
    assert shard.run(threads.few, [1]) is None
    assert shard.run(threads.read, [1]) == {1: (1, 2, 3)}
