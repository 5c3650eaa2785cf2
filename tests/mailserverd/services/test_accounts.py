"""Commands on accounts, domains and aliases, on real databases."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.types import system
from mailserverd.services import dns_check
from storage.directory import AddAccount
from storage.metadata import accounts as shard_units
from storage.metadata import directory as units
from tests.lib import knot
from tests.lib.people import HOSTNAME, People, people

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable
    from typing import Any

PEER = {"peer": "192.0.2.1", "protocol": "imap"}
SECRET = "correct horse"


def run(
    path: pathlib.Path, scenario: Callable[[People], Awaitable[None]], **options: Any
) -> None:
    """Run a scenario with one domain, example.org."""

    async def whole() -> None:
        async with people(path, **options) as p:
            await p.accounts.domain_add("example.org")
            await scenario(p)

    asyncio.run(whole())


async def refused(kind: Kind, awaitable: Awaitable[Any]) -> str:
    """Expect a refusal; return its text."""
    with pytest.raises(MailError) as caught:
        await awaitable
    assert caught.value.kind is kind
    return caught.value.text


def test_a_new_account_logs_in_and_gets_mail_at_once(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        made = await p.accounts.account_add(
            "Alice@Example.ORG", SECRET, name="Alice", quota=1000
        )
        assert made["address"] == "alice@example.org"
        principal = await p.authenticator.check_password(
            "alice@example.org", SECRET.encode(), **PEER
        )
        assert principal.account == made["account"]
        resolution = await p.directory.resolve("ALICE+lists@example.org")
        assert resolution is not None
        assert resolution.targets[0].account == made["account"]
        state = await p.shards.read(system(made["account"]), shard_units.state, None)
        assert state.quota_limit == 1000
        (row,) = await p.accounts.account_list()
        assert (row["address"], row["quota"], row["used"]) == (
            "alice@example.org",
            1000,
            0,
        )

    run(place, scenario)


def test_mistakes_have_their_own_refusals(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        add = p.accounts.account_add
        await add("alice@example.org", SECRET)
        await refused(Kind.ALREADY_EXISTS, add("alice@example.org", SECRET))
        text = await refused(Kind.NOT_FOUND, add("a@other.example", SECRET))
        assert "mailserverd domain add other.example" in text
        for bad in ("alice", "@example.org", "a b@example.org", ".a@example.org", "a@"):
            await refused(Kind.INVALID, add(bad, SECRET))
        for password in ("", "x" * 2000, "a\0b"):
            await refused(Kind.INVALID, add("bob@example.org", password))
        await refused(
            Kind.NOT_FOUND, p.accounts.account_passwd("bob@example.org", SECRET)
        )
        await refused(Kind.INVALID, p.accounts.domain_add("not a domain"))
        await refused(Kind.ALREADY_EXISTS, p.accounts.domain_add("EXAMPLE.org"))

    run(place, scenario)


def test_dry_runs_change_nothing(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        a = p.accounts
        await a.account_add("alice@example.org", SECRET)
        before = await a.account_list(), await a.domain_list(), await a.alias_list()
        await a.account_add("bob@example.org", SECRET, dry_run=True)
        await a.account_remove("alice@example.org", dry_run=True)
        await a.account_passwd("alice@example.org", "other", dry_run=True)
        await a.account_quota("alice@example.org", 5, dry_run=True)
        await a.domain_add("x.example", dry_run=True)
        await a.domain_remove("example.org", dry_run=True)
        await a.alias_add("s@example.org", ["alice@example.org"], dry_run=True)
        after = await a.account_list(), await a.domain_list(), await a.alias_list()
        assert before == after
        await p.authenticator.check_password(
            "alice@example.org", SECRET.encode(), **PEER
        )

    run(place, scenario)


def test_removal_ends_everything_and_ids_are_not_used_again(
    place: pathlib.Path,
) -> None:
    async def scenario(p: People) -> None:
        a = p.accounts
        made = await a.account_add("alice@example.org", SECRET)
        await a.alias_add("sales@example.org", ["alice@example.org"])
        principal = await p.authenticator.check_password(
            "alice@example.org", SECRET.encode(), **PEER
        )
        await a.account_remove("alice@example.org")
        assert not p.authenticator.still_valid(principal)
        await refused(
            Kind.AUTH_FAILED,
            p.authenticator.check_password(
                "alice@example.org", SECRET.encode(), **PEER
            ),
        )
        for address in ("alice@example.org", "sales@example.org"):
            assert await p.directory.resolve(address) is None
        await refused(
            Kind.NOT_FOUND,
            p.shards.read(system(made["account"]), shard_units.state, None),
        )
        assert p.forgotten == [made["account"]]
        with pytest.raises(MailError):  # nothing is left in the shard either
            await p.shards.databases[0].read(shard_units.state, made["account"], None)
        again = await a.account_add("alice@example.org", SECRET)
        assert again["account"] > made["account"]
        assert await a.alias_list() == []

    run(place, scenario)


def test_accounts_spread_over_shards(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        for n in range(8):
            await p.accounts.account_add(f"u{n}@example.org", SECRET)
        rows = await p.accounts.account_list()
        assert sorted(row["shard"] for row in rows) == [0, 0, 1, 1, 2, 2, 3, 3]

    run(place, scenario, shards=4)


def test_a_shard_that_is_not_configured_is_unavailable_not_empty(
    place: pathlib.Path,
) -> None:
    async def first(p: People) -> None:
        for n in range(2):
            await p.accounts.account_add(f"u{n}@example.org", SECRET)

    run(place, first, shards=2)

    async def second() -> None:
        async with people(place, shards=1) as p:
            found = await p.directory.account_by_address("u1@example.org")
            assert found is not None
            read = p.shards.read(system(found.account_id), shard_units.state, None)
            await refused(Kind.UNAVAILABLE, read)
            assert await p.directory.resolve("u1@example.org") is not None
            rows = {r["address"]: r for r in await p.accounts.account_list()}
            assert rows["u1@example.org"]["shard"] is None
            assert "problem" in rows["u1@example.org"]

    asyncio.run(second())


def test_what_a_crash_left_is_cleared_at_start(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        gone = await p.accounts.account_add("old@example.org", SECRET)
        await p.directory.write(units.remove_account, gone["account"], None)
        new = AddAccount("new", "example.org", p.directory.shards[0], "hash")
        await p.directory.write(units.reserve_account, 0, new)
        assert await p.directory.resolve("new@example.org") is None
        await p.accounts.recover()
        assert await p.directory.read(units.unfinished, 0, None) == ()
        assert len(p.forgotten) == 2
        await p.accounts.account_add("new@example.org", SECRET)

    run(place, scenario)


def test_domain_removal_is_refused_while_it_has_addresses(
    place: pathlib.Path,
) -> None:
    async def scenario(p: People) -> None:
        a = p.accounts
        await a.domain_add("keep.example")
        await a.account_add("boss@keep.example", SECRET)
        await a.account_add("alice@example.org", SECRET)
        await a.alias_add("all@keep.example", ["alice@example.org"])
        await refused(Kind.NOT_EMPTY, a.domain_remove("example.org"))
        await a.domain_remove("example.org", force=True)
        assert [row["domain"] for row in await a.domain_list()] == ["keep.example"]
        assert [r["address"] for r in await a.account_list()] == ["boss@keep.example"]
        assert await a.alias_list() == []
        assert not await p.directory.is_local("example.org")
        await refused(Kind.NOT_FOUND, a.domain_remove("example.org"))

    run(place, scenario)


def test_aliases_are_checked_when_made(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        a = p.accounts
        alice = await a.account_add("alice@example.org", SECRET)
        made = await a.alias_add("sales@example.org", ["Alice@example.org"])
        assert made["targets"] == ["alice@example.org"]
        assert made["send_as"]
        away = ["alice@example.org", "x@else.example"]
        assert not (await a.alias_add("team@example.org", away))["send_as"]
        own = await p.directory.addresses_of(alice["account"])
        assert own == {"alice@example.org", "sales@example.org"}
        await refused(
            Kind.ALREADY_EXISTS, a.alias_add("alice@example.org", ["x@else.example"])
        )
        await refused(
            Kind.ALREADY_EXISTS, a.alias_add("sales@example.org", ["x@else.example"])
        )
        await refused(Kind.ALREADY_EXISTS, a.account_add("sales@example.org", SECRET))
        await refused(Kind.INVALID, a.alias_add("x@example.org", ["no@example.org"]))
        await refused(Kind.INVALID, a.alias_add("x@example.org", []))
        await a.alias_remove("sales@example.org")
        assert await p.directory.resolve("sales@example.org") is None
        await refused(Kind.NOT_FOUND, a.alias_remove("sales@example.org"))
        await refused(Kind.NOT_FOUND, a.alias_remove("alice@example.org"))

    run(place, scenario)


def test_international_domains_are_one_domain(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        made = await p.accounts.domain_add("bücher.example")
        assert made["domain"] == "xn--bcher-kva.example"
        await p.accounts.account_add("žofie@BÜCHER.example", SECRET)
        for form in ("Žofie@bücher.example", "žofie@xn--bcher-kva.example"):
            assert await p.directory.resolve(form) is not None

    run(place, scenario)


def test_app_passwords_come_and_go_alone(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        a, token = p.accounts, "tok-EN_0123456789abc"
        await a.account_add("alice@example.org", SECRET)
        await a.account_app_password("alice@example.org", "phone", token)
        await refused(
            Kind.ALREADY_EXISTS,
            a.account_app_password("alice@example.org", "phone", token),
        )
        await refused(
            Kind.INVALID, a.account_app_password("alice@example.org", "x", "short")
        )
        check = p.authenticator.check_password
        phone = await check("alice@example.org", token.encode(), **PEER)
        main = await check("alice@example.org", SECRET.encode(), **PEER)
        await a.account_app_password("alice@example.org", "phone")
        assert not p.authenticator.still_valid(phone)
        assert p.authenticator.still_valid(main)
        await refused(
            Kind.AUTH_FAILED, check("alice@example.org", token.encode(), **PEER)
        )

    run(place, scenario)


def test_domain_dns_names_every_record(place: pathlib.Path) -> None:
    async def scenario(p: People) -> None:
        found = (await p.accounts.domain_dns("example.org"))["records"]
        by_name = {(r["name"], r["type"]): r["value"] for r in found}
        assert by_name["example.org", "MX"] == f"10 {HOSTNAME}."
        assert by_name["example.org", "TXT"] == '"v=spf1 mx -all"'
        selectors = (await p.accounts.domain_list())[0]["selectors"]
        assert len(selectors) == 2
        for selector in selectors:
            value = by_name[f"{selector}._domainkey.example.org", "TXT"]
            assert value.startswith('"v=DKIM1; k=')
            assert all(len(part) <= 257 for part in value.split(" "))
        for name in ("_dmarc", "_mta-sts", "_smtp._tls"):
            assert (f"{name}.example.org", "TXT") in by_name
        for service in ("_imaps", "_submissions", "_jmap"):
            assert (f"{service}._tcp.example.org", "SRV") in by_name
        assert "PRIVATE" not in str(found)

    run(place, scenario)


@pytest.mark.skipif(not knot.available(), reason="knot is not installed")
def test_domain_dns_check_compares_with_the_live_dns(place: pathlib.Path) -> None:
    with knot.Knot({"example.org": "@ MX 10 elsewhere"}) as dns:

        async def scenario(p: People) -> None:
            result = await p.accounts.domain_dns("example.org", check=True)
            wrong = {(r["name"], r["type"]) for r in result["check"] if not r["ok"]}
            assert ("example.org", "MX") in wrong
            assert (HOSTNAME, "A") in wrong
            assert ("_dmarc.example.org", "TXT") in wrong
            zone = "\n".join(
                f"{r['name']}. {r['type']} {r['value']}" for r in result["records"]
            )
            dns.update({"example.org": f"{zone}\n{HOSTNAME}. A 192.0.2.7"})
            result = await p.accounts.domain_dns("example.org", check=True)
            assert [r for r in result["check"] if not r["ok"]] == []

        run(place, scenario, dns_servers=(dns.server,))


def test_domain_dns_check_gives_up_on_silent_servers(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_check, "TIMEOUT", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{silent.getsockname()[1]}"

        async def scenario(p: People) -> None:
            async with asyncio.timeout(5):
                result = await p.accounts.domain_dns("example.org", check=True)
            assert not any(line["ok"] for line in result["check"])
            assert "DNS failure" in result["check"][1]["text"]

        run(place, scenario, dns_servers=(server,))
