"""Resolving addresses, and caches that are never older than they may be."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from auth.people import addresses, directory
from auth.people.directory import POLL, Addressing, Directory, Resolution, Target
from mailserverd.core.errors import Kind, MailError
from storage.directory import AddAlias
from storage.metadata import aliases
from storage.metadata.sql import Sql
from tests.lib.people import People, people

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

    from storage.api import Tx

SECRET = "correct horse"


def run(
    path: pathlib.Path, scenario: Callable[[People], Awaitable[None]], **options: Any
) -> None:
    """Run a scenario with alice (1) and bob (2) in example.org."""

    async def whole() -> None:
        async with people(path, **options) as p:
            await p.accounts.domain_add("example.org")
            for name in ("alice", "bob"):
                await p.accounts.account_add(f"{name}@example.org", SECRET)
            await scenario(p)

    asyncio.run(whole())


async def alias(p: People, address: str, *targets: str) -> None:
    """Make an alias without the checks of the command."""
    local, domain = addresses.parse(address)
    new = AddAlias(local, domain, targets, send_as=False, replace=True)
    await p.directory.write(aliases.add_alias, 0, new)


async def targets(p: People, address: str) -> list[tuple[int, str]] | None:
    """Resolve to (account, detail) pairs."""
    found = await p.directory.resolve(address)
    return [(t.account, t.detail) for t in found.targets] if found else None


def test_case_quotes_and_tags(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        for address, detail in (
            ("alice@example.org", ""),
            ("ALICE@Example.Org", ""),
            ("alice@example.org.", ""),
            ('"alice"@example.org', ""),
            ('"a\\lice"@example.org', ""),
            ("alice+lists@example.org", "lists"),
            ("alice+a+b@example.org", "a+b"),
            ("alice+@example.org", ""),
        ):
            assert await targets(p, address) == [(1, detail)], address

    run(place, scenario)


def test_tricks_do_not_resolve(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        for address in (
            "",
            "@",
            "alice",
            "alice@",
            "@example.org",
            "+x@example.org",
            "carol@example.org",
            "alice@other.example",
            "alice@sub.example.org",
            "alice%other.example@example.org",
            "other.example!alice@example.org",
            "alice@other.example@example.org",
            "alice@example.org@other.example",
            "alice@[192.0.2.1]",
            '"alice@example.org',
            "alice@example..org",
            "alice\0@example.org",
            "x" * 5000 + "@example.org",
            "\ud800@example.org",
        ):
            assert await p.directory.resolve(address) is None, address
        assert not await p.directory.is_local("other.example")
        assert await p.directory.is_local("EXAMPLE.org")

    run(place, scenario)


def test_tags_can_be_switched_off(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        assert await p.directory.resolve("alice+x@example.org") is None
        assert await targets(p, "alice@example.org") == [(1, "")]

    run(place, scenario, addressing=Addressing(separator=""))


def test_aliases_nest_pass_tags_and_name_each_target_once(
    place: pathlib.Path,
) -> None:
    async def scenario(p: People) -> None:
        await alias(p, "bob2@example.org", "bob@example.org")
        await alias(
            p,
            "all@example.org",
            "alice+team@example.org",
            "bob2@example.org",
            "bob@example.org",
            "x@else.example",
            "x@else.example",
        )
        found = await p.directory.resolve("all+tag@example.org")
        assert found == Resolution(
            (Target(1, "team"), Target(2, "tag")), ("x@else.example",)
        )

    run(place, scenario)


def test_alias_cycles_are_refused_and_harmless(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        await alias(p, "a@example.org", "b@example.org")
        with pytest.raises(MailError) as caught:
            await alias(p, "b@example.org", "a@example.org")
        assert caught.value.kind is Kind.INVALID
        with pytest.raises(MailError):
            await alias(p, "self@example.org", "self@example.org")
        await alias(p, "b@example.org", "c+x@example.org")  # a tag hides the cycle
        await alias(p, "c@example.org", "a@example.org", "alice@example.org")
        assert await targets(p, "a@example.org") == [(1, "x")]
        await alias(p, "c@example.org", "a+y@example.org")
        assert await p.directory.resolve("a@example.org") is None

    run(place, scenario)


def test_alias_depth_is_limited_not_cut(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        await alias(p, "d0@example.org", "alice@example.org")
        for n in range(1, 14):
            await alias(p, f"d{n}@example.org", f"d{n - 1}@example.org")
        assert await targets(p, "d9@example.org") == [(1, "")]
        with pytest.raises(MailError) as caught:
            await p.directory.resolve("d13@example.org")
        assert caught.value.kind is Kind.LIMIT

    run(place, scenario)


def test_postmaster_and_abuse_exist_everywhere(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        await p.accounts.domain_add("empty.example")
        for address in (
            "postmaster",
            "Postmaster",
            "postmaster@example.org",
            "ABUSE@example.org",
            "abuse+x@empty.example",
        ):
            found = await targets(p, address)
            assert found is not None
            assert found[0][0] == 1, address
        assert await p.directory.resolve("abuse@other.example") is None
        await p.accounts.domain_postmaster("example.org", "bob@example.org")
        assert await targets(p, "abuse@example.org") == [(2, "")]
        await alias(p, "postmaster@example.org", "alice@example.org")
        assert await targets(p, "postmaster@example.org") == [(1, "")]
        assert await targets(p, "abuse@example.org") == [(2, "")]

    run(place, scenario)


def test_a_configured_postmaster_gets_it_all(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        for address in ("postmaster", "abuse@example.org"):
            assert await targets(p, address) == [(2, "")]

    run(place, scenario, addressing=Addressing(postmaster="bob@example.org"))


def test_senders_use_their_own_addresses_only(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        await p.accounts.alias_add("sales@example.org", ["alice@example.org"])
        may = p.directory.may_send_as
        for address in (
            "alice@example.org",
            "Alice+tag@EXAMPLE.org",
            "sales@example.org",
        ):
            assert await may(1, address), address
            assert not await may(2, address), address
        for address in ("bob@example.org", "", "alice", "alice@other.example"):
            assert not await may(1, address), address

    run(place, scenario)


def test_cached_answers_cost_microseconds_and_changes_show_at_once(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(p: People) -> None:
        found = await p.directory.resolve("alice@example.org")
        with monkeypatch.context() as patch:
            patch.setattr(p.directory._database, "read", None)  # nothing is read
            started = time.process_time()
            for _ in range(1000):
                assert await p.directory.resolve("alice@example.org") == found
            assert (time.process_time() - started) / 1000 < 0.0001
        assert await p.directory.resolve("carol@example.org") is None
        await p.accounts.account_add("carol@example.org", SECRET)
        assert await targets(p, "carol@example.org") == [(3, "")]
        assert p.directory.shard_of(3) == 0

    run(place, scenario)


REMOVE = [
    Sql(text(statement))
    for statement in (
        "UPDATE directory_state SET version = version + 1",
        "DELETE FROM address WHERE account_id = :account",
        "DELETE FROM credential WHERE account_id = :account",
        "UPDATE account SET state = 'deleted', version = "
        "(SELECT version FROM directory_state) WHERE account_id = :account",
    )
]


def remove_account(tx: Tx, _account: int, account: int) -> None:
    """Do what another process does that deletes an account."""
    for number, statement in enumerate(REMOVE):
        tx.run(statement, {"account": account} if number else {})


def test_another_process_is_noticed_within_the_poll(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        check = p.authenticator.check_password
        who = await check(
            "alice@example.org", SECRET.encode(), peer="192.0.2.1", protocol="imap"
        )
        assert await targets(p, "alice@example.org") == [(1, "")]
        await p.database.write(remove_account, 0, 1)
        assert await targets(p, "alice@example.org") == [(1, "")]  # not looked yet
        p.clock.move(POLL)
        assert await p.directory.resolve("alice@example.org") is None
        assert not p.authenticator.still_valid(who)
        with pytest.raises(MailError):
            p.directory.shard_of(1)

    run(place, scenario)


def test_watch_notices_without_being_asked(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        task = asyncio.create_task(p.directory.watch())
        await p.database.write(remove_account, 0, 1)
        async with asyncio.timeout(5):
            while True:
                try:
                    p.directory.shard_of(1)
                except MailError:
                    break
                await asyncio.sleep(0.01)
        task.cancel()

    run(place, scenario)


def test_watch_logs_once_that_the_directory_cannot_be_read(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(p: People) -> None:
        looks, enough = 0, asyncio.Event()

        async def refresh(*, now: bool = False) -> None:
            nonlocal looks
            looks += 1
            if looks == 10:
                enough.set()
            if looks not in {4, 7}:
                raise MailError(Kind.UNAVAILABLE, "away")

        monkeypatch.setattr(p.directory, "refresh", refresh)
        monkeypatch.setattr(directory, "POLL", 0)
        with capture_logs() as lines:
            task = asyncio.create_task(p.directory.watch())
            async with asyncio.timeout(5):
                await enough.wait()
            task.cancel()
        assert [line["event"] for line in lines] == ["directory-unreadable"] * 3

    run(place, scenario)


def test_unknown_accounts_have_no_shard(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        for account in (-1, 0, 3, 10**9):
            with pytest.raises(MailError) as caught:
                p.directory.shard_of(account)
            assert caught.value.kind is Kind.NOT_FOUND

    run(place, scenario)


def test_a_copied_shard_is_refused(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        with pytest.raises(MailError) as caught:
            Directory(p.directory._database, p.clock, [b"x" * 16, b"x" * 16])
        assert "copy" in caught.value.text

    run(place, scenario)


def test_dkim_keys_are_there_and_can_sign(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        keys = await p.directory.dkim_keys("Example.org")
        assert {key.algorithm for key in keys} == {"rsa", "ed25519"}
        assert all("PRIVATE KEY" in key.pem for key in keys)
        assert await p.directory.dkim_keys("other.example") == ()

    run(place, scenario)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Alice@Example.org", ("alice", "example.org")),
        ("postmaster", ("postmaster", "")),
        ("STRASSE@bücher.example", ("strasse", "xn--bcher-kva.example")),
        ("Straße@x.example", ("strasse", "x.example")),
        ("e\u0301@x.example", ("\u00e9", "x.example")),
        ('"a b"@x.example', ("a b", "x.example")),
        ('""@x.example', None),
        ('"@x.example', None),
        ("x" * 65 + "@x.example", None),
        ("a@" + "x" * 64 + ".example", None),
        ("a\0b@x.example", None),
        ("", None),
    ],
)
def test_canonical(given: str, found: tuple[str, str] | None) -> None:
    assert addresses.canonical(given) == found
