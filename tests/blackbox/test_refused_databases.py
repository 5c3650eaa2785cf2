"""Databases on PostgreSQL that are refused, named, and put side by side with files."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.lib import daemon
from tests.lib.databases import SQLITE, Mixed, Postgresql
from tests.lib.postgresql_site import (
    ALICE,
    BOB,
    PEOPLE,
    SECRETS,
    deliver,
    faults,
    on,
    running,
    subjects,
)
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def engine() -> Iterator[Postgresql]:
    """The cluster of this run."""
    with on() as used:
        yield used


# --- what is refused -----------------------------------------------------------------


def refusal(ours: daemon.Daemon) -> str:
    """Return what a daemon says that does not start; never the password."""
    ours.start(wait=False)
    assert ours.process is not None
    try:
        status = ours.process.wait(30)
    finally:
        ours.kill()
    log = ours.log()
    assert status == os.EX_TEMPFAIL, log
    assert not any(secret in log for secret in SECRETS)
    assert "Traceback" not in log, log
    return log.splitlines()[-1]


@pytest.fixture(scope="module")
def template(
    engine: Postgresql, tmp_path_factory: pytest.TempPathFactory
) -> daemon.Daemon:
    home = tmp_path_factory.mktemp("refused") / "ours"
    return daemon.make(home, *PEOPLE, engine=engine)


@pytest.fixture
def stopped(template: daemon.Daemon, tmp_path: pathlib.Path) -> daemon.Daemon:
    """An instance that is not started yet."""
    return template.copy(tmp_path / "ours")


def sql(ours: daemon.Daemon, name: str, text: str, *args: object) -> Any:
    assert isinstance(ours.engine, Postgresql)
    database = ours.engine.database(ours.home / "data", name)
    return ours.engine.cluster.sql(text, *args, database=database)


def point(ours: daemon.Daemon, **urls: str) -> None:
    """Change where databases are."""
    lines = [f"{name} = {json.dumps(url)}" for name, url in urls.items()]
    ours.override("\n".join(["[storage]", *lines, ""]), "60-elsewhere.toml")


def test_a_shard_that_the_directory_does_not_know_is_refused(
    stopped: daemon.Daemon,
) -> None:
    sql(stopped, "shard-0", "UPDATE meta SET uuid = $1", bytes(16))
    said = refusal(stopped)
    assert "shard-0" in said, said
    assert bytes(16).hex() in said, said


@pytest.mark.parametrize("name", ["directory", "shard-0", "queue"])
def test_an_unknown_schema_is_refused(stopped: daemon.Daemon, name: str) -> None:
    sql(stopped, name, "UPDATE meta SET schema_version = 99, needs_version = 99")
    said = refusal(stopped)
    assert "needs a newer mailserverd" in said, said
    sql(stopped, name, "UPDATE meta SET schema_version = 1, needs_version = 1")
    said = refusal(stopped)
    assert "run: mailserverd storage migrate" in said, said


def test_an_empty_database_is_refused_until_it_is_migrated(
    stopped: daemon.Daemon, engine: Postgresql
) -> None:
    point(stopped, queue=engine.url(stopped.home / "other", "queue"))
    said = refusal(stopped)
    assert "run: mailserverd storage migrate" in said, said
    rows = stopped.command("storage", "migrate")
    assert {row["name"]: row["before"] > 0 for row in rows} == {
        "directory": True,
        "shard-0": True,
        "queue": False,
    }
    with running(stopped):
        assert deliver(stopped, "at last", ALICE)[0] == 250


def test_a_database_of_another_kind_or_of_others_is_refused(
    stopped: daemon.Daemon, engine: Postgresql
) -> None:
    data = stopped.home / "data"
    point(
        stopped,
        directory=engine.url(data, "queue"),
        queue=engine.url(data, "directory"),
    )
    assert "holds a queue, not a directory" in refusal(stopped)
    name = engine.cluster.database()
    engine.cluster.sql("CREATE TABLE customers (id int)", database=name)
    point(stopped, queue=engine.cluster.url(name))
    assert "not a database of mailserverd" in refusal(stopped)
    engine.cluster.drop(name)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_another_encoding_is_refused(
    stopped: daemon.Daemon, engine: Postgresql, encoding: str
) -> None:
    name = engine.cluster.database(encoding=encoding)
    point(stopped, queue=engine.cluster.url(name))
    said = refusal(stopped)
    assert encoding in said, said
    assert "UTF8" in said, said
    done = stopped.command("storage", "migrate", check=False)
    assert f"its encoding is {encoding}" in json.dumps(done), done
    engine.cluster.drop(name)


def test_what_cannot_be_reached_is_named_without_its_password(
    stopped: daemon.Daemon, engine: Postgresql
) -> None:
    good = engine.url(stopped.home / "data", "queue")
    closed = good.replace(f":{engine.cluster.port}/", ":9/")
    for url, why in (
        (good.replace(f":{SECRETS[1]}@", ":wrong-Secret@"), "password"),
        (good + "_gone", "does not exist"),
        (closed, "127.0.0.1:9"),
    ):
        point(stopped, queue=url)
        said = refusal(stopped)
        assert why in said, said
        assert "wrong-Secret" not in said, said


def test_passwords_are_shown_nowhere(stopped: daemon.Daemon) -> None:
    for args in (["storage", "status"], ["storage", "check"], ["config", "diff"]):
        shown = json.dumps(stopped.command(*args))
        assert not any(secret in shown for secret in SECRETS), shown
    assert stopped.command("storage", "status")[0]["url"].startswith(
        "postgresql+asyncpg:"
    )


# --- engines side by side ------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "in_file"),
    [("directory", True), ("queue", False), ("shard-0", False), ("shard-1", True)],
)
def test_engines_are_mixed_at_will(
    where: str, in_file: bool, engine: Postgresql, tmp_path: pathlib.Path
) -> None:
    """One database in a file, the others on PostgreSQL, or the other way round."""
    mixed = Mixed(where, *((SQLITE, engine) if in_file else (engine, SQLITE)))
    with running(
        daemon.make(tmp_path / "ours", *PEOPLE, engine=mixed, shards=2)
    ) as ours:
        rows = {row["name"]: row["url"] for row in ours.command("storage", "status")}
        files = {name for name, url in rows.items() if url.startswith("sqlite")}
        assert files == ({where} if in_file else {*rows} - {where, "blobs"})
        assert deliver(ours, "for both", ALICE, BOB)[0] == 250
        for user in (ALICE, BOB):
            eventually(lambda who=user: subjects(ours, who) == ["for both"])
        assert faults(ours) == []
