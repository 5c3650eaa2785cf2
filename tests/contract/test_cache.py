"""What every cache promises: it may forget, it never lies and never grows past its
bound."""

from __future__ import annotations

import random

import pytest

from storage.cache.memory import OVERHEAD, MemoryCache
from tests.lib.failing import MODES, FailingCache


def test_what_was_put_is_got_until_it_is_replaced() -> None:
    cache = MemoryCache()
    assert cache.get((1, "a")) is None
    cache.put((1, "a"), b"one")
    cache.put((2, "a"), b"two")
    assert (cache.get((1, "a")), cache.get((2, "a"))) == (b"one", b"two")
    cache.put((1, "a"), b"three")
    assert cache.get((1, "a")) == b"three"


def test_the_least_recently_used_goes_first() -> None:
    cache = MemoryCache(octets=3 * (OVERHEAD + 10))
    for name in "abc":
        cache.put(name, b"0123456789")
    assert cache.get("a")
    cache.put("d", b"0123456789")
    kept = [name for name in "abcd" if cache.get(name)]
    assert kept == ["a", "c", "d"]


def test_it_never_holds_more_than_its_bound() -> None:
    rng = random.Random(1)
    limit = 20_000
    cache = MemoryCache(octets=limit)
    model: dict[int, bytes] = {}
    for _ in range(3000):
        key, value = rng.randrange(300), rng.randbytes(rng.randrange(900))
        cache.put(key, value)
        model[key] = value
        held = [v for k in model if (v := cache.get(k)) is not None]
        assert sum(len(v) + OVERHEAD for v in held) <= limit
        assert cache.get(key) == value
    cache.put("huge", bytes(limit * 2))
    assert cache.get("huge") is None


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_cache_forgets_and_never_lies(mode: str) -> None:
    cache = FailingCache(MemoryCache(), mode)
    found = []
    for number in range(50):
        cache.put(number % 7, b"%d" % number)
        kept = cache.get(number % 7)
        assert kept in {None, b"%d" % number}
        found.append(kept)
    assert all(found) is (mode == "slowly")
    assert any(found) is (mode in {"slowly", "sometimes"})


def test_keys_of_any_kind_and_values_of_any_size() -> None:
    cache = MemoryCache()
    for key in (None, 0, "", b"", (1, ("a", b"b")), frozenset({1}), 1.5):
        cache.put(key, b"")
        assert cache.get(key) == b""
        cache.put(key, bytes(1000))
        assert cache.get(key) == bytes(1000)
