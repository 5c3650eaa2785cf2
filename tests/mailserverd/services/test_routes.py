"""Where mail for a domain goes."""

from __future__ import annotations

import asyncio

import pytest

from mailserverd.services.routes import NoRoute, Router, RouteSettings
from tests.lib.clock import ManualClock
from tests.lib.zones import FAILED, ZoneResolver

RECORDS: dict[tuple[str, str], object] = {
    ("a.example", "MX"): [(20, "mx2.example"), (10, "mx1.example")],
    ("mx1.example", "A"): ["198.51.100.1", "198.51.100.2"],
    ("mx1.example", "AAAA"): ["2001:db8::1"],
    ("mx2.example", "A"): ["198.51.100.9"],
    ("implicit.example", "A"): ["198.51.100.3"],
    ("null.example", "MX"): [(0, "")],
    ("partly.example", "MX"): [(0, ""), (10, "mx2.example")],
    ("failing.example", "MX"): FAILED,
    ("halffailing.example", "MX"): [(10, "lost.example")],
    ("lost.example", "A"): FAILED,
    ("dead.example", "MX"): [(10, "nowhere.example")],
    ("backup.example", "MX"): [
        (5, "mx1.example"),
        (10, "mx.example.org"),
        (10, "mx2.example"),
        (20, "mx3.example"),
    ],
    ("ours.example", "MX"): [(10, "mx.example.org"), (20, "mx2.example")],
    ("local.example", "MX"): [(10, "loop.example")],
    ("loop.example", "A"): ["127.0.0.1"],
    ("mixed.example", "MX"): [(10, "mixed.example")],
    ("mixed.example", "A"): ["10.0.0.1", "198.51.100.4"],
    ("relay.example", "A"): ["10.0.0.5"],
}


def hosts(domain: str, **settings: object) -> list[str]:
    """Return the addresses that a domain leads to, documentation nets being public."""
    router = Router(
        ZoneResolver(RECORDS),
        ManualClock(),
        RouteSettings("mx.example.org", **settings),  # type: ignore[arg-type] # of the test
    )
    allowed = router._allowed
    router._allowed = lambda address: (  # type: ignore[method-assign] # see above
        address.startswith(("198.51.100.", "2001:db8:")) or allowed(address)
    )
    return [h.address for h in asyncio.run(router.hosts(domain))]


@pytest.mark.parametrize(
    ("domain", "addresses"),
    [
        ("a.example", ["2001:db8::1", "198.51.100.1", "198.51.100.2", "198.51.100.9"]),
        ("implicit.example", ["198.51.100.3"]),
        ("partly.example", ["198.51.100.9"]),
        ("backup.example", ["2001:db8::1", "198.51.100.1", "198.51.100.2"]),
        ("mixed.example", ["198.51.100.4"]),
        ("[198.51.100.7]", ["198.51.100.7"]),
        ("[IPv6:2001:db8::7]", ["2001:db8::7"]),
    ],
)
def test_routes(domain: str, addresses: list[str]) -> None:
    assert hosts(domain) == addresses


@pytest.mark.parametrize(
    ("domain", "code", "status"),
    [
        ("missing.example", 550, "5.1.2"),
        ("null.example", 556, "5.1.10"),
        ("failing.example", 451, "4.4.3"),
        ("halffailing.example", 451, "4.4.3"),
        ("dead.example", 550, "5.4.4"),
        ("ours.example", 554, "5.4.6"),
        ("local.example", 550, "5.4.4"),
        ("[127.0.0.1]", 550, "5.4.4"),
        ("[10.1.1.1]", 550, "5.4.4"),
        ("[IPv6:::1]", 550, "5.4.4"),
        ("[IPv6:::ffff:127.0.0.1]", 550, "5.4.4"),
        ("[x]", 550, "5.1.2"),
    ],
)
def test_dead_ends(domain: str, code: int, status: str) -> None:
    with pytest.raises(NoRoute) as caught:
        hosts(domain)
    assert (caught.value.code, caught.value.status) == (code, status)


def test_loopback_where_it_is_allowed() -> None:
    assert hosts("local.example", allow_loopback=True) == ["127.0.0.1"]
    assert hosts("[127.0.0.1]", allow_loopback=True) == ["127.0.0.1"]


@pytest.mark.parametrize("smarthost", ["relay.example:587", "[10.0.0.5]:587"])
def test_a_smarthost_gets_everything(smarthost: str) -> None:
    assert hosts("missing.example", smarthost=smarthost) == ["10.0.0.5"]


def test_equal_preferences_share_the_load() -> None:
    records: dict[tuple[str, str], object] = {
        ("a.example", "MX"): [(10, f"mx{n}.example") for n in range(4)]
    } | {(f"mx{n}.example", "A"): [f"8.8.8.{n}"] for n in range(4)}

    class Random(ManualClock):
        def random(self) -> float:
            self.jitter = (self.jitter * 7919 + 0.137) % 1
            return self.jitter

    router = Router(ZoneResolver(records), Random(), RouteSettings("mx.example.org"))
    first = {asyncio.run(router.hosts("a.example"))[0].name for _ in range(50)}
    assert len(first) == 4
