"""``storage status | migrate``: each database by itself, and what does not fit."""

from __future__ import annotations

import asyncio
import pathlib
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.app.databases import migrate, status
from mailserverd.app.offline import commands
from mailserverd.app.stores import databases
from mailserverd.core.errors import MailError
from mailserverd.core.ports import SystemClock
from mailserverd.core.urls import shown
from mailserverd.settings import read
from storage.engines import migrate_database
from storage.metadata.meta import SCHEMAS
from storage.metadata.sqlite_url import path_of

if TYPE_CHECKING:
    from mailserverd.settings import Settings

CLOCK = SystemClock()
TEXT = '[server]\nhostname = "mail.example.test"\ndata_dir = "data"\n'
GARBAGE = b"nothing like a database" * 500


def settings_of(tmp_path: pathlib.Path, shards: int) -> Settings:
    path = tmp_path / "mailserverd.toml"
    urls = [f'"sqlite:///{tmp_path}/data/shard-{n}.db"' for n in range(shards)]
    path.write_text(f"{TEXT}[storage]\nshards = [{', '.join(urls)}]\n")
    return read(path)


@pytest.fixture
def settings(tmp_path: pathlib.Path) -> Settings:
    """Two shards, each with an account."""
    made = settings_of(tmp_path, 2)
    assert problems(migrated(made)) == {}

    async def fill() -> None:
        async with commands(made, CLOCK) as opened:
            await run(opened, "domain.add", domain="example.test")
            for name in ("alice", "bob"):
                address = f"{name}@example.test"
                await run(
                    opened, "account.add", address=address, password="a pass word"
                )

    asyncio.run(fill())
    return made


async def run(opened: Any, command: str, **args: Any) -> Any:
    return await opened.run(command, args, lambda _: None)


def migrated(settings: Settings, **how: Any) -> list[dict[str, Any]]:
    return asyncio.run(migrate(settings, CLOCK, **how))


def problems(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["name"]: row["problem"] for row in rows if row["problem"]}


def status_of(settings: Settings) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in asyncio.run(status(settings, CLOCK))}


def file(settings: Settings, name: str) -> pathlib.Path:
    found = {one: url for one, _, url in databases(settings)}
    return pathlib.Path(path_of(found[name]))


def test_the_status_shows_each_database(settings: Settings) -> None:
    rows = status_of(settings)
    assert list(rows) == ["directory", "shard-0", "shard-1", "queue", "blobs"]
    assert problems(list(rows.values())) == {}
    for name, kind, _ in databases(settings):
        row = rows[name]
        assert (row["kind"], row["engine"]) == (kind, "sqlite")
        assert row["schema"] == SCHEMAS[kind]
        assert len(bytes.fromhex(row["uuid"])) == 16
        assert row["size"] > 0
    assert [rows[f"shard-{n}"]["accounts"] for n in (0, 1)] == [1, 1]


def test_passwords_are_never_shown() -> None:
    for url, public in (
        ("postgresql+asyncpg://me:pa:ss@db/x", "postgresql+asyncpg://me:***@db/x"),
        ("postgresql+asyncpg://me:p@ss@db:1/x", "postgresql+asyncpg://me:***@db:1/x"),
        ("postgresql+asyncpg://me@db/x?a=1", "postgresql+asyncpg://me@db/x?a=1"),
        ("x:///y?password=top&b=2", "x:///y?password=***&b=2"),
        ("s3://b/p?secret_key=top", "s3://b/p?secret_key=***"),
        ("sqlite:////var/a:b@c.db", "sqlite:////var/a:b@c.db"),
        ("sqlite:///here.db", "sqlite:///here.db"),
    ):
        assert shown(url) == public


@pytest.mark.parametrize("name", ["directory", "shard-1", "queue"])
def test_what_cannot_be_read_is_named_and_stops_nothing(
    settings: Settings, name: str
) -> None:
    file(settings, name).write_bytes(GARBAGE)
    rows = status_of(settings)
    assert list(problems(list(rows.values()))) == [name]
    assert rows[name]["uuid"] is None
    done = migrated(settings)
    assert list(problems(done)) == [name]
    assert [row["after"] for row in done if not row["problem"]] == [2, 2, 2]


def test_a_lost_shard_is_not_made_anew_unasked(settings: Settings) -> None:
    """An empty database in its place would show its users empty accounts."""
    file(settings, "shard-1").unlink()
    for how in ({"dry_run": True}, {}):
        (problem,) = problems(migrated(settings, **how)).values()
        assert "1 accounts live on" in problem
        assert "--accept shard-1" in problem
        assert not file(settings, "shard-1").exists()
    assert "put that back" in problems(list(status_of(settings).values()))["shard-1"]
    assert problems(migrated(settings, accept="shard-1")) == {}
    rows = status_of(settings)
    assert rows["shard-1"]["accounts"] == 0
    assert rows[
        "shard-1 (missing)" if "shard-1 (missing)" in rows else "shard (missing)"
    ]


def test_a_shard_with_others_accounts_is_not_taken_unasked(
    settings: Settings, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    theirs = settings_of(other, 1)
    migrated(theirs)

    async def fill() -> None:
        async with commands(theirs, CLOCK) as opened:
            await run(opened, "domain.add", domain="example.test")
            args = {"address": "eve@example.test", "password": "a pass word"}
            await run(opened, "account.add", **args)

    asyncio.run(fill())
    three = settings_of(tmp_path, 3)
    file(three, "shard-2").write_bytes(file(theirs, "shard-0").read_bytes())
    (problem,) = problems(migrated(three)).values()
    assert "--accept shard-2" in problem
    assert "does not know" in problems(list(status_of(three).values()))["shard-2"]
    assert problems(migrated(three, accept="shard-2")) == {}
    assert problems(list(status_of(three).values())) == {}


def test_a_new_shard_is_taken(settings: Settings, tmp_path: pathlib.Path) -> None:
    three = settings_of(tmp_path, 3)
    assert "migrate" in problems(list(status_of(three).values()))["shard-2"]
    assert [r["after"] for r in migrated(three, dry_run=True)] == [2] * 5
    assert not file(three, "shard-2").exists()
    rows = migrated(three)
    assert [row["before"] for row in rows] == [2, 2, 2, 0, 2]
    assert problems(list(status_of(three).values())) == {}


def test_a_copy_of_a_shard_is_named(settings: Settings, tmp_path: pathlib.Path) -> None:
    three = settings_of(tmp_path, 3)
    file(three, "shard-2").write_bytes(file(three, "shard-0").read_bytes())
    assert "copy" in problems(list(status_of(three).values()))["shard-2"]


def test_a_shard_taken_out_of_the_configuration_is_missed(
    settings: Settings, tmp_path: pathlib.Path
) -> None:
    rows = status_of(settings_of(tmp_path, 1))
    assert rows["shard-1 (missing)"]["accounts"] == 1


def test_a_database_of_another_kind_is_refused(settings: Settings) -> None:
    path = file(settings, "queue")
    path.unlink()
    asyncio.run(migrate_database(f"sqlite:///{path}", "shard", CLOCK))
    assert "not a queue" in problems(migrated(settings))["queue"]
    assert "not a queue" in problems(list(status_of(settings).values()))["queue"]


def test_only_a_configured_shard_can_be_accepted(settings: Settings) -> None:
    for name in ("shard-2", "queue"):
        with pytest.raises(MailError, match="no shard"):
            migrated(settings, accept=name)
