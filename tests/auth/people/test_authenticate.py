"""Password checks: right, fast the second time, slow for who guesses."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from auth.people.authenticate import Authenticator, Limits
from auth.people.passwords import CHEAP, Cost, Passwords
from mailserverd.core.errors import Kind, MailError
from tests.lib.people import People, offload, people

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

ALICE, SECRET = "alice@example.org", b"correct horse"
HOME, AWAY = "192.0.2.1", "198.51.100.7"


class Counting(Passwords):
    """Counts the expensive part."""

    def __init__(self, cost: Cost = CHEAP) -> None:
        super().__init__(cost)
        self.runs = 0
        self.at_once = 0
        self.most_at_once = 0

    def verify(self, encoded: str, password: bytes) -> bool:
        """Count, then verify."""
        self.runs += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return super().verify(encoded, password)
        finally:
            self.at_once -= 1


def run(
    path: pathlib.Path,
    scenario: Callable[[People, Authenticator, Counting], Awaitable[None]],
    **options: Any,
) -> None:
    """Run a scenario with one account."""

    async def whole() -> None:
        async with people(path) as p:
            await p.accounts.domain_add("example.org")
            await p.accounts.account_add(ALICE, SECRET.decode())
            hasher = Counting()
            auth = Authenticator(
                p.directory, p.clock, offload, hasher=hasher, **options
            )
            await scenario(p, auth, hasher)

    asyncio.run(whole())


async def login(
    auth: Authenticator, password: bytes = SECRET, peer: str = HOME, user: str = ALICE
) -> Any:
    """Log in; return the principal, or the kind of refusal."""
    try:
        return await auth.check_password(user, password, peer=peer, protocol="imap")
    except MailError as error:
        return error.kind


def test_the_second_login_costs_no_hash_and_microseconds(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(_p: People, auth: Authenticator, hasher: Counting) -> None:
        first = await login(auth)
        assert first.address == ALICE
        assert hasher.runs == 1
        started = time.process_time()
        for _ in range(100):
            assert await login(auth) == first
        assert (time.process_time() - started) / 100 < 0.001
        assert await login(auth, user="Alice@EXAMPLE.org") == first
        assert hasher.runs == 1

    run(tmp_path, scenario)


def test_remembering_ends_after_its_time(tmp_path: pathlib.Path) -> None:
    async def scenario(p: People, auth: Authenticator, hasher: Counting) -> None:
        await login(auth)
        p.clock.move(299)
        await login(auth)
        assert hasher.runs == 1
        p.clock.move(2)
        await login(auth)
        assert hasher.runs == 2

    run(tmp_path, scenario)


def test_wrong_unknown_and_disabled_cost_the_same_and_say_the_same(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(p: People, auth: Authenticator, hasher: Counting) -> None:
        for user in (ALICE, "nobody@example.org", "no address", "x@other.example"):
            before = hasher.runs
            assert await login(auth, b"wrong", user=user) is Kind.AUTH_FAILED
            assert hasher.runs == before + 1
        await p.accounts.account_enable(ALICE, on=False)
        before = hasher.runs
        assert await login(auth) is Kind.AUTH_FAILED
        assert hasher.runs == before + 1

    run(tmp_path, scenario)


def test_a_changed_password_ends_what_the_old_one_opened(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(p: People, auth: Authenticator, _hasher: Counting) -> None:
        old = await login(auth)
        assert auth.still_valid(old)
        await p.accounts.account_passwd(ALICE, "new one")
        assert not auth.still_valid(old)
        assert await login(auth) is Kind.AUTH_FAILED
        new = await login(auth, b"new one")
        assert auth.still_valid(new)
        assert new.version > old.version
        await p.accounts.account_enable(ALICE, on=False)
        assert not auth.still_valid(new)
        await p.accounts.account_enable(ALICE, on=True)
        assert auth.still_valid(new)

    run(tmp_path, scenario)


def test_guesses_are_throttled_but_not_the_owner(tmp_path: pathlib.Path) -> None:
    async def scenario(p: People, auth: Authenticator, hasher: Counting) -> None:
        await login(auth)
        kinds = [await login(auth, b"guess%d" % n, AWAY) for n in range(10)]
        assert kinds[:6] == [Kind.AUTH_FAILED] * 6
        assert kinds[6:] == [Kind.RATE_LIMITED] * 4
        assert hasher.runs == 7
        # The right password tells nothing to who guesses, remembered or not.
        assert await login(auth, SECRET, AWAY) is Kind.RATE_LIMITED
        assert (await login(auth)).address == ALICE
        p.clock.move(400)  # forgotten: the owner's next login is a full check
        assert (await login(auth)).address == ALICE

    run(tmp_path, scenario)


def test_guesses_in_parallel_are_charged_before_they_end(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(_p: People, auth: Authenticator, hasher: Counting) -> None:
        guesses = (login(auth, b"guess%d" % n, AWAY) for n in range(50))
        kinds = await asyncio.gather(*guesses)
        assert kinds.count(Kind.RATE_LIMITED) >= 44
        assert hasher.runs <= 6

    run(tmp_path, scenario)


def test_the_same_login_in_parallel_is_one_check(tmp_path: pathlib.Path) -> None:
    async def scenario(_p: People, auth: Authenticator, hasher: Counting) -> None:
        found = await asyncio.gather(*(login(auth) for _ in range(30)))
        assert len(set(found)) == 1
        assert hasher.runs == 1

    run(tmp_path, scenario)


def test_a_client_that_leaves_does_not_take_the_check_from_others(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(_p: People, auth: Authenticator, hasher: Counting) -> None:
        first = asyncio.create_task(login(auth))
        second = asyncio.create_task(login(auth))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).address == ALICE
        assert hasher.runs == 1

    run(tmp_path, scenario)


def test_hashes_at_once_and_waiting_are_bounded(tmp_path: pathlib.Path) -> None:
    async def scenario(_p: People, auth: Authenticator, hasher: Counting) -> None:
        many = [login(auth, b"x", f"10.0.{n}.1", f"u{n}@example.org") for n in range(9)]
        kinds = await asyncio.gather(*many)
        assert hasher.most_at_once <= 2
        assert kinds.count(Kind.UNAVAILABLE) == 4
        assert kinds.count(Kind.AUTH_FAILED) == 5

    run(tmp_path, scenario, limits=Limits(hashes=2, waiting=5))


def test_remembered_logins_are_bounded_and_hold_no_password(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(p: People, auth: Authenticator, _hasher: Counting) -> None:
        for n in range(5):
            await p.accounts.account_add(f"u{n}@example.org", f"password{n}")
            await login(auth, b"password%d" % n, user=f"u{n}@example.org")
        assert len(auth._remembered) == 3
        assert "password" not in repr(auth._remembered)

    run(tmp_path, scenario, limits=Limits(remembered=3))


def test_old_hashes_are_renewed_without_ending_sessions(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(p: People, auth: Authenticator, _hasher: Counting) -> None:
        before = await login(auth)
        strong = Authenticator(
            p.directory, p.clock, offload, hasher=Counting(Cost(memory=128, passes=1))
        )
        after = await login(strong)
        assert after == before
        assert auth.still_valid(before)
        found = await p.directory.login(ALICE)
        assert found is not None
        assert "m=128" in found.credentials[0].hash

    run(tmp_path, scenario)


def test_unicode_passwords_match_in_any_normal_form(tmp_path: pathlib.Path) -> None:
    async def scenario(p: People, auth: Authenticator, _hasher: Counting) -> None:
        await p.accounts.account_passwd(ALICE, "caf\u00e9 noir")
        assert (await login(auth, "cafe\u0301 noir".encode())).address == ALICE
        assert await login(auth, b"caf\xff") is Kind.AUTH_FAILED
        assert await login(auth, b"x" * 100_000) is Kind.AUTH_FAILED

    run(tmp_path, scenario)


def test_a_broken_directory_is_unavailable_and_charges_nobody(
    tmp_path: pathlib.Path,
) -> None:
    async def scenario(p: People, auth: Authenticator, _hasher: Counting) -> None:
        async def down(_user: str) -> None:
            raise MailError(Kind.UNAVAILABLE)

        real, p.directory.login = p.directory.login, down  # type: ignore[method-assign]
        for _ in range(20):
            assert await login(auth) is Kind.UNAVAILABLE
        p.directory.login = real  # type: ignore[method-assign]
        assert (await login(auth)).address == ALICE

    run(tmp_path, scenario)


def test_default_cost_is_what_owasp_asks_for() -> None:
    hasher = Passwords()
    encoded = hasher.hash(b"secret")
    assert encoded.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert hasher.verify(encoded, b"secret")
    assert not hasher.verify(encoded, b"Secret")
    assert not hasher.verify("garbage", b"secret")
    assert not hasher.verify_nobody(b"secret")


def test_a_user_who_does_not_exist_costs_as_much_as_a_wrong_password() -> None:
    """The hash that is made up for them is computed like any other."""
    hasher = Passwords()
    encoded = hasher.hash(b"secret")

    def cost(check: Callable[[], bool]) -> float:
        began = time.process_time()
        assert not check()
        return time.process_time() - began

    nobody = min(cost(lambda: hasher.verify_nobody(b"x")) for _ in range(5))
    somebody = min(cost(lambda: hasher.verify(encoded, b"x")) for _ in range(5))
    assert nobody > somebody / 2
