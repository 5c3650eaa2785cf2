"""Who guesses waits; who owns the account does not."""

from __future__ import annotations

import pytest

from auth.people.throttle import Allowance, Throttle, network_of
from tests.lib.clock import ManualClock

RULE = Allowance(user_and_network=3, network=6, user=8)


def guess(throttle: Throttle, user: str, network: str, times: int) -> None:
    """Fail some logins."""
    for _ in range(times):
        throttle.charge(user, network)


def test_waits_begin_after_the_allowance_and_double() -> None:
    throttle = Throttle(ManualClock(), RULE)
    guess(throttle, "a", "n", 3)
    assert throttle.wait("a", "n") == 0
    waits = []
    for _ in range(4):
        throttle.charge("a", "n")
        waits.append(throttle.wait("a", "n"))
    assert waits == [1, 2, 4, 8]
    guess(throttle, "a", "n", 40)
    assert throttle.wait("a", "n") == RULE.longest_wait
    assert throttle.wait("b", "other") == 0


def test_waits_end_and_failures_are_forgotten() -> None:
    clock = ManualClock()
    throttle = Throttle(clock, RULE)
    guess(throttle, "a", "n", 4)
    clock.move(1)
    assert throttle.wait("a", "n") == 0
    clock.move(RULE.half_life * 10)
    guess(throttle, "a", "n", 3)
    assert throttle.wait("a", "n") == 0


def test_one_network_guessing_many_users_is_slowed() -> None:
    throttle = Throttle(ManualClock(), RULE)
    for n in range(7):
        throttle.charge(f"user{n}", "n")
    assert throttle.wait("another", "n") > 0
    assert throttle.wait("another", "m") == 0


def test_many_networks_guessing_one_user_are_slowed_the_owner_is_not() -> None:
    throttle = Throttle(ManualClock(), RULE)
    throttle.charge("a", "home")
    throttle.refund("a", "home")
    throttle.trust("a", "home")
    for n in range(20):
        throttle.charge("a", f"bot{n}")
    assert throttle.wait("a", "new") > 0
    assert throttle.wait("a", "home") == 0


def test_a_proxy_on_loopback_does_not_slow_its_other_users() -> None:
    throttle = Throttle(ManualClock(), RULE)
    for n in range(50):
        throttle.charge(f"user{n}", network_of("127.0.0.1"))
    assert throttle.wait("another", network_of("127.0.0.1")) == 0
    guess(throttle, "a", network_of("::1"), 4)
    assert throttle.wait("a", network_of("::1")) > 0


def test_refunds_do_not_end_a_wait_that_others_earned() -> None:
    throttle = Throttle(ManualClock(), RULE)
    for n in range(8):
        throttle.charge(f"user{n}", "n")
    before = throttle.wait("x", "n")
    throttle.charge("own", "n")
    throttle.refund("own", "n")
    assert throttle.wait("x", "n") >= before > 0


def test_it_can_be_switched_off() -> None:
    never = float("inf")
    rule = Allowance(user_and_network=never, network=never, user=never)
    throttle = Throttle(ManualClock(), rule)
    guess(throttle, "a", "n", 100)
    assert throttle.wait("a", "n") == 0


def test_entries_are_bounded() -> None:
    throttle = Throttle(ManualClock(), Allowance(entries=100))
    for n in range(1000):
        throttle.charge(f"u{n}", f"n{n}")
        throttle.trust(f"u{n}", f"n{n}")
    assert len(throttle._entries) <= 100
    assert len(throttle._known) <= 100


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("not an address", "not an address"),
    ],
)
def test_network_of(peer: str, network: str) -> None:
    assert network_of(peer) == network


def test_guesses_in_two_processes_weigh_as_much_as_in_one() -> None:
    """What one of them counts, the other one hears."""
    clock = ManualClock()
    one, other = Throttle(clock), Throttle(clock)
    one.told, other.told = other.hear, one.hear
    for number in range(6):
        (one, other)[number % 2].charge("alice@x", "192.0.2.0/24")
    assert one.wait("alice@x", "192.0.2.0/24") == 1
    assert other.wait("alice@x", "192.0.2.0/24") == 1
    one.trust("alice@x", "192.0.2.0/24")
    assert other.wait("alice@x", "192.0.2.0/24") == 0
