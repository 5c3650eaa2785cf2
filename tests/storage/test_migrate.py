"""Schemas: revisions add up to the tables, and old databases are brought up to date."""

from __future__ import annotations

import asyncio
import pathlib
import sqlite3
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from setuptools.discovery import PackageFinder
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from mailserverd.core.errors import Kind, MailError
from storage.engines import inspect_database, migrate_database
from storage.metadata import migrate, migrations
from storage.metadata.meta import KINDS, NEEDS, SCHEMAS, revision
from storage.metadata.sqlite_file import connect
from tests.lib.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

ROOT = pathlib.Path(__file__).parents[2]


def schema(path: pathlib.Path) -> dict[str, str]:
    """Return the SQL of every table and index, white space apart, and statistics."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL")
    found = {name: " ".join(sql.split()) for name, sql in rows}
    if "sqlite_stat1" in found:
        rows = connection.execute("SELECT tbl, idx, stat FROM sqlite_stat1")
        found |= {f"stat {tbl} {idx}": stat for tbl, idx, stat in rows}
    connection.close()
    return found


def old_database(
    path: pathlib.Path, kind: str, run: Callable[[Connection], Any]
) -> None:
    """Make a database with a meta row at schema 0, then run something on it."""
    raw = connect(str(path))
    engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)
    with engine.connect() as connection, connection.begin():
        raw.execute("BEGIN IMMEDIATE")
        migrate.begin_meta(connection, kind, 0)
        run(connection)
    engine.dispose()
    raw.close()


@pytest.mark.parametrize("kind", KINDS)
def test_revisions_add_up_to_the_tables(kind: str, tmp_path: pathlib.Path) -> None:
    at_once, by_revisions = tmp_path / "at-once.db", tmp_path / "by-revisions.db"
    asyncio.run(migrate_database(f"sqlite:///{at_once}", kind, ManualClock()))
    old_database(by_revisions, kind, lambda c: migrations.upgrade(c, kind))
    assert schema(at_once) == schema(by_revisions)
    one, two = (
        asyncio.run(inspect_database(f"sqlite:///{p}")) for p in (at_once, by_revisions)
    )
    assert (one.kind, one.schema, one.needs) == (two.kind, two.schema, two.needs)


def test_any_directory_may_hold_a_database(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "100%25 #1? yes"
    place.mkdir()
    made = asyncio.run(
        migrate_database(f"sqlite:///{place}/queue.db", "queue", ManualClock())
    )
    assert asyncio.run(inspect_database(f"sqlite:///{place}/queue.db")) == made.meta


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_the_schema_of_this_release(kind: str) -> None:
    head, needs = migrations.head(kind)
    assert head == revision(SCHEMAS[kind])
    assert needs == NEEDS[kind] <= SCHEMAS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_database_is_upgraded_and_keeps_its_identity(
    kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a second revision, as the next release may bring it."""
    url = f"sqlite:///{tmp_path}/old.db"
    made = asyncio.run(migrate_database(url, kind, ManualClock()))
    present = SCHEMAS[kind]
    versions = tmp_path / "versions" / kind
    versions.mkdir(parents=True)
    for file in (ROOT / "storage/metadata/migrations").rglob("*.py"):
        target = (
            tmp_path
            / "versions"
            / file.relative_to(ROOT / "storage/metadata/migrations")
        )
        target.parent.mkdir(exist_ok=True)
        target.write_text(file.read_text())
    after, before = revision(present + 1), revision(present)
    (versions / f"{after}_more.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f'revision, down_revision, needs = "{after}", "{before}", 1\n'
        "def upgrade():\n"
        '    op.create_table("more", sa.Column("id", sa.Integer, primary_key=True))\n'
    )
    monkeypatch.setattr(migrations, "HERE", tmp_path / "versions")
    monkeypatch.setitem(SCHEMAS, kind, present + 1)
    done = asyncio.run(migrate_database(url, kind, ManualClock()))
    assert (done.before, done.meta.schema, done.meta.needs) == (present, present + 1, 1)
    assert done.meta.uuid == made.meta.uuid
    assert "more" in schema(tmp_path / "old.db")
    monkeypatch.setitem(SCHEMAS, kind, present)  # the previous release still runs on it
    again = asyncio.run(migrate_database(url, kind, ManualClock()))
    assert again.meta.schema == present + 1


def test_a_revision_that_fails_leaves_the_database_as_it_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    asyncio.run(migrate_database(url, "directory", ManualClock()))
    before, present = schema(tmp_path / "old.db"), SCHEMAS["directory"]

    def fail(connection: Connection, _kind: str) -> None:
        connection.exec_driver_sql("CREATE TABLE half (id INTEGER)")
        raise MailError(Kind.UNAVAILABLE)

    monkeypatch.setattr(migrations, "upgrade", fail)
    monkeypatch.setitem(SCHEMAS, "directory", SCHEMAS["directory"] + 1)
    with pytest.raises(MailError):
        asyncio.run(migrate_database(url, "directory", ManualClock()))
    assert schema(tmp_path / "old.db") == before
    assert asyncio.run(inspect_database(url)).schema == present


def test_other_files_are_not_touched(tmp_path: pathlib.Path) -> None:
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE precious (x)")
    connection.commit()
    connection.close()
    for path in (foreign, foreign / "directory.db"):
        with pytest.raises(MailError) as caught:
            asyncio.run(
                migrate_database(f"sqlite:///{path}", "directory", ManualClock())
            )
        assert caught.value.kind is Kind.UNAVAILABLE
    assert schema(foreign) == {"precious": "CREATE TABLE precious (x)"}
    assert asyncio.run(inspect_database(f"sqlite:///{tmp_path}/none.db")).schema == 0
    assert not (tmp_path / "none.db").exists()


def test_opening_a_current_database_does_not_load_alembic(
    tmp_path: pathlib.Path,
) -> None:
    code = (
        "import asyncio, sys\n"
        "from mailserverd.core.ports import SystemClock\n"
        "from storage.engines import migrate_database, open_database\n"
        f"url = 'sqlite:///{tmp_path}/queue.db'\n"
        "asyncio.run(migrate_database(url, 'queue', SystemClock()))\n"
        "asyncio.run(open_database(url, 'queue', SystemClock(), name='queue'))\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_wheel_has_the_revisions() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    include = settings["packages"]["find"]["include"]
    packages = set(PackageFinder.find(str(ROOT), include=include))
    for kind in KINDS:
        assert f"storage.metadata.migrations.{kind}" in packages
    assert "metadata/migrations/*.mako" in settings["package-data"]["storage"]
