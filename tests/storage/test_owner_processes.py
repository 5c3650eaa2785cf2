"""A database that several real processes share: crash, drain, return, fairness."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time

import pytest

from tests.lib import sharer
from tests.lib.sharer import SLOT, Sharer
from tests.lib.sharing import run_dir
from tests.lib.waiting import eventually

TAKEOVER = 2.0  # seconds


@contextlib.contextmanager
def sharing(directory):
    """Yield a function that starts a process which shares one database."""
    url = asyncio.run(sharer.make(directory))
    with run_dir() as run, contextlib.ExitStack() as stack:

        def start(slot, writers, role="candidate"):
            one = Sharer(url, run, slot, writers, role)
            stack.callback(one.kill)
            return one

        start.url = url
        yield start


@pytest.fixture
def site(tmp_path):
    """What needs to be shown on one engine alone."""
    with sharing(tmp_path) as start:
        yield start


@pytest.fixture
def any_site(place):
    """What is shown on each engine."""
    with sharing(place) as start:
        yield start


def check(url, processes, *, killed=()):
    """Compare what is there with what was acknowledged; return what was done.

    Nothing failed, nothing is missing, and nothing is there that was not said;
    a process that was killed may have written more than it could say.
    """
    done = {one.slot: one.end() for one in processes}
    there = {}
    for n in asyncio.run(sharer.numbers(url)):
        there.setdefault(n // SLOT, []).append(n)
    for slot, what in done.items():
        assert what["failed"] == []
        assert there.pop(slot, []) == sorted(what["acknowledged"])
    assert set(there) <= set(killed)
    return done


def test_after_a_crash_of_the_owner_the_others_go_on_and_nothing_is_done_twice(
    any_site,
):
    others = [any_site(slot, 8) for slot in (2, 3, 4)]
    for one in others:
        one.wait_for("open")
    slots = itertools.count(5)
    killed = []
    for _ in range(2):
        (owner,) = eventually(lambda: [one for one in others if one.owns])
        before = {one: one.wrote() for one in others}
        eventually(lambda b=before: all(one.wrote() > b[one] + 100 for one in others))
        owner.kill()
        killed.append(owner.slot)
        others.remove(owner)
        began, before = time.monotonic(), [one.wrote() for one in others]
        eventually(
            lambda b=before: all(
                one.wrote() > was + 50 for one, was in zip(others, b, strict=True)
            )
        )
        assert time.monotonic() - began < TAKEOVER
        others.append(any_site(next(slots), 8))
        others[-1].wait_for("open")
    done = check(any_site.url, others, killed=killed)
    assert max(what["longest"] for what in done.values()) < TAKEOVER


def test_a_drained_owner_hands_over_and_no_unit_fails(any_site):
    processes = [any_site(slot, 8) for slot in (1, 2, 3)]
    done = []
    for one in processes:
        one.wait_for("wrote")
    while processes:
        owner = eventually(lambda: [one for one in processes if one.owns])[0]
        before = {one: one.wrote() for one in processes}
        eventually(lambda b=before: all(one.wrote() > b[one] + 50 for one in b))
        done.append(owner.end())
        processes.remove(owner)
    assert [what["failed"] for what in done] == [[], [], []]
    acknowledged = sorted(n for what in done for n in what["acknowledged"])
    assert asyncio.run(sharer.numbers(any_site.url)) == acknowledged
    assert max(what["longest"] for what in done) < TAKEOVER


def test_the_preferred_owner_gets_it_back(site):
    other = site(2, 8)
    eventually(lambda: other.owns)
    preferred = site(1, 8, "prefer")
    eventually(lambda: preferred.owns and not other.owns)
    preferred.kill()
    eventually(lambda: other.owns)
    again = site(3, 8, "prefer")
    eventually(lambda: again.owns and not other.owns)
    again.wait_for("wrote")
    check(site.url, [other, again], killed=[1])


def test_one_that_is_no_candidate_waits_for_an_owner(site):
    owner = site(2, 0, "later")  # units wait for less than a process takes to start
    owner.wait_for("ready")
    remote = site(1, 4, "remote")
    remote.wait_for("open")
    assert not remote.wrote()
    owner.signal(signal.SIGUSR2)
    remote.wait_for("wrote")
    assert owner.owns
    assert not remote.owns
    check(site.url, [remote, owner])


def test_units_of_all_processes_share_commits(site):
    owner = site(1, 20, "prefer")
    eventually(lambda: owner.owns)  # all the time: it has to have counted all units
    rest = [site(2, 20), site(3, 20)]
    for one in (owner, *rest):
        one.wait_for("wrote", 5)
    for one in rest:  # first, so that no other process becomes the owner
        one.signal(signal.SIGUSR1)
    done = check(site.url, [*rest, owner])
    units = done[1]["units"]
    assert units >= sum(len(what["acknowledged"]) for what in done.values())
    assert done[1]["commits"] <= 0.1 * units


def test_nobody_starves(site):
    """One process asks a lot in the owner itself, three do from elsewhere."""
    processes = [site(1, 1000, "prefer"), site(2, 300), site(3, 10), site(4, 1)]
    for one in processes:
        one.wait_for("open")
    for one in processes[:3]:
        one.wait_for("wrote", 2)
    began = {one: one.wrote() for one in processes}
    eventually(lambda: processes[0].wrote() > began[processes[0]] + 3000)
    done = check(site.url, processes)
    for what in done.values():
        assert what["acknowledged"]
        assert 0 < what["worst"] < TAKEOVER
    assert done[4]["worst"] < 1
