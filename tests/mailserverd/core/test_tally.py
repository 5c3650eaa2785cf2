"""Counting connections in one process, and in several at once."""

from __future__ import annotations

import os

import pytest

from mailserverd.core.tally import LocalTally, SharedTally, Table


def shared() -> SharedTally:
    return Table(3).column(1)


@pytest.mark.parametrize("make", [LocalTally, shared])
def test_each_key_is_counted(make: type[LocalTally]) -> None:
    tally = make()
    assert [tally.add("a"), tally.add("a"), tally.add(("b", "1"))] == [1, 2, 1]
    tally.drop("a")
    assert tally.add("a") == 2
    for _ in range(5):
        tally.drop("a")  # never below nothing
    assert tally.add("a") == 1


def test_processes_see_one_anothers_counts() -> None:
    table = Table(2)
    ours, theirs = table.column(0), table.column(1)
    assert ours.add("x") == 1
    child = os.fork()
    if child == 0:
        seen = 0
        try:
            seen = theirs.add("x")
        finally:
            os._exit(seen)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert ours.add("x") == 3
    ours.drop("x")
    table.column(1)  # who replaces it starts from nothing
    assert ours.add("x") == 2


def test_many_keys_hardly_disturb_one_another() -> None:
    """10,000 addresses with a connection each: none seems to have many."""
    tally = Table(1).column(0)
    counts = [tally.add(("imap", f"192.0.{n % 250}.{n // 250}")) for n in range(10_000)]
    assert sum(count > 1 for count in counts) < 1000
    assert max(counts) < 6
