"""Databases of each kind, on each engine, opened as the daemon does.

An engine keeps databases by the directory that they belong to: SQLite in its files,
PostgreSQL on the cluster of this run, where they are dropped with the engine.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Protocol

import pytest

from mailserverd.core.ports import SystemClock
from storage import engines
from storage.engines import migrate_database, open_database
from tests.lib import postgresql

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from mailserverd.core.ports import Clock
    from storage.api import Database


class Server(Protocol):
    """A way to a cluster."""

    @property
    def cluster(self) -> postgresql.Cluster:
        """The cluster itself."""

    def url(self, name: str) -> str:
        """Return a database's URL."""


class Sqlite:
    """The embedded engine: ``DIRECTORY/NAME.db``."""

    name = "sqlite"
    in_files = True

    def url(self, directory: pathlib.Path, name: str) -> str:
        """Return the URL of a database."""
        return f"sqlite:///{directory / name}.db"

    async def prepare(self, directory: pathlib.Path, kind: str, name: str) -> str:
        """Make a database with its tables where there is none; return its URL."""
        url = self.url(directory, name)
        await migrate_database(url, kind, SystemClock())
        return url

    def layout(self, home: pathlib.Path, shards: int) -> str:
        """Return the settings of a daemon under ``home``; its own for one shard."""
        if shards == 1:
            return ""
        return _settings([self.url(home / "data", f"shard-{n}") for n in range(shards)])

    def copy(self, old: pathlib.Path, new: pathlib.Path) -> None:
        """Copy the databases below a directory: they are in the files."""

    def serves(self, _home: pathlib.Path) -> bool:
        """Tell whether a daemon's databases are in use on this engine."""
        return True

    @contextlib.contextmanager
    def locked(self, directory: pathlib.Path, name: str) -> Iterator[None]:
        """Keep others from writing to a database; they may read."""
        other = sqlite3.connect(directory / f"{name}.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
            other.close()

    def spoil(self, directory: pathlib.Path, name: str, *tables: str) -> None:
        """Overwrite the root pages of tables that nobody has open."""
        path = directory / f"{name}.db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            (size,) = database.execute("PRAGMA page_size").fetchone()
            rows = database.execute("SELECT name, rootpage FROM sqlite_master")
            pages = [page for name, page in rows if name in tables]
        assert len(pages) == len(tables), tables
        with path.open("r+b") as file:
            for page in pages:
                file.seek((page - 1) * size)
                file.write(b"\xa5" * size)

    def ruin(self, directory: pathlib.Path, name: str) -> None:
        """Leave no database where one was."""
        (directory / f"{name}.db").write_bytes(b"not a database" * 1000)

    @contextlib.contextmanager
    def hidden(self, directory: pathlib.Path, name: str) -> Iterator[None]:
        """Let a database that nobody has open be none for a while."""
        path, away = directory / f"{name}.db", directory / f"{name}.away"
        path.rename(away)
        self.ruin(directory, name)
        try:
            yield
        finally:
            away.replace(path)

    def close(self) -> None:
        """Remove what was made: pytest does."""


class Postgresql:
    """Databases on the cluster of this run, or on a server that is given: reached
    directly, by pgbouncer, or by a proxy."""

    name = "postgresql"
    in_files = False

    def __init__(self, server: Server | None = None) -> None:
        if ("metadata", "postgresql+asyncpg") not in engines.ENGINES:
            pytest.skip("this build has no engine for PostgreSQL")
        self.server: Server = server or postgresql.cluster()
        self.cluster = self.server.cluster
        self._names: dict[pathlib.Path, str] = {}
        self._kinds: dict[pathlib.Path, str] = {}  # of those that serve again

    def url(self, directory: pathlib.Path, name: str) -> str:
        """Return the URL of a database, which is made, empty, when there is none."""
        return self._url(directory / name)

    def _url(self, key: pathlib.Path, like: str = "") -> str:
        if key not in self._names:
            self._names[key] = self.cluster.database(like)
        return self.server.url(self._names[key])

    async def prepare(self, directory: pathlib.Path, kind: str, name: str) -> str:
        """Make a database with its tables where there is none; return its URL."""
        key = directory / name
        if key not in self._names:
            self._names[key] = await _fresh(self.cluster, kind)
            self._kinds[key] = kind
        return self._url(key)

    def layout(self, home: pathlib.Path, shards: int) -> str:
        """Return the settings of a daemon under ``home``."""
        data = home / "data"
        return _settings(
            [self.url(data, f"shard-{n}") for n in range(shards)],
            directory=self.url(data, "directory"),
            queue=self.url(data, "queue"),
        )

    def copy(self, old: pathlib.Path, new: pathlib.Path) -> None:
        """Copy the databases below a directory; nobody may be connected to them."""
        for key, name in list(self._names.items()):
            if key.is_relative_to(old):
                self._url(new / key.relative_to(old), like=name)

    def database(self, directory: pathlib.Path, name: str) -> str:
        """Return the name that a database has on the server."""
        return self._names[directory / name]

    def serves(self, home: pathlib.Path) -> bool:
        """Tell whether a daemon is connected here, and keeps nothing in files."""
        ours = [n for key, n in self._names.items() if key.is_relative_to(home)]
        rows = self.cluster.sql("SELECT datname FROM pg_stat_activity")
        connected = not {name for (name,) in rows}.isdisjoint(ours)
        return connected and not any(home.rglob("*.db"))

    @contextlib.contextmanager
    def locked(self, directory: pathlib.Path, name: str) -> Iterator[None]:
        """Keep others from writing to a database; they may read."""
        with self.cluster.locked(self._names[directory / name]):
            yield

    def spoil(self, directory: pathlib.Path, name: str, *tables: str) -> None:
        """Overwrite the first pages of tables; the server restarts for it."""
        self.cluster.spoil(self._names[directory / name], *tables)

    def ruin(self, directory: pathlib.Path, name: str) -> None:
        """Leave no database where one was."""
        self.cluster.drop(self._names[directory / name])

    @contextlib.contextmanager
    def hidden(self, directory: pathlib.Path, name: str) -> Iterator[None]:
        """Let a database that nobody has open be none for a while."""
        here = self._names[directory / name]
        self.cluster.sql(f'ALTER DATABASE "{here}" RENAME TO "{here}_away"')
        try:
            yield
        finally:
            self.cluster.sql(f'ALTER DATABASE "{here}_away" RENAME TO "{here}"')

    def close(self) -> None:
        """Remove what was made, or keep it for who wants the same."""
        for key, name in self._names.items():
            if key in self._kinds:
                _spare.setdefault((self.cluster.port, self._kinds[key]), []).append(
                    name
                )
            else:
                self.cluster.discard(name)
        self._names.clear()
        self._kinds.clear()


class Mixed:
    """A daemon's databases, one on this engine, the others on that."""

    name = "mixed"
    in_files = False

    def __init__(self, one: str, here: Engine, others: Engine) -> None:
        self.one, self.here, self.others = one, here, others

    def url(self, directory: pathlib.Path, name: str) -> str:
        """Return the URL of a database."""
        return (self.here if name == self.one else self.others).url(directory, name)

    def layout(self, home: pathlib.Path, shards: int) -> str:
        """Return the settings of a daemon under ``home``."""
        data = home / "data"
        return _settings(
            [self.url(data, f"shard-{n}") for n in range(shards)],
            directory=self.url(data, "directory"),
            queue=self.url(data, "queue"),
        )

    def serves(self, _home: pathlib.Path) -> bool:
        """Tell nothing: a test looks at its status."""
        return True


Engine = Sqlite | Postgresql | Mixed
SQLITE = Sqlite()
ENGINES = {"sqlite": Sqlite, "postgresql": Postgresql}
_spare: dict[tuple[int, str], list[str]] = {}  # by the cluster's port and the kind
_places: dict[pathlib.Path, Engine] = {}
# Making a database takes as long as a hundred of these.
EMPTY = """
DO $$
DECLARE one text;
BEGIN
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    FOR one IN SELECT tablename FROM pg_tables WHERE schemaname = 'public'
        AND tablename NOT IN ('meta', 'alembic_version')
    LOOP EXECUTE format('DELETE FROM %I', one); END LOOP;
    FOR one IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'
    LOOP EXECUTE format('ALTER SEQUENCE %I RESTART', one); END LOOP;
END $$
"""


async def _fresh(cluster: postgresql.Cluster, kind: str) -> str:
    """Return a database as it is when it was just made: a new one, or an old one
    without what was in it, under a new identity."""
    spare = _spare.get((cluster.port, kind))
    if not spare:
        name = cluster.database()
        await migrate_database(cluster.url(name), kind, SystemClock())
        return name
    name = spare.pop()
    cluster.sql(EMPTY, database=name)
    cluster.sql("UPDATE meta SET uuid = $1", os.urandom(16), database=name)
    return name


def _settings(shards: list[str], **others: str) -> str:
    urls = ", ".join(f'"{url}"' for url in shards)
    lines = [f'{name} = "{url}"' for name, url in others.items()]
    return "\n".join(["[storage]", f"shards = [{urls}]", *lines, ""])


@contextlib.contextmanager
def engine(name: str) -> Iterator[Engine]:
    """Use an engine by its name; what is made on it goes in the end."""
    made = ENGINES[name]()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def on(name: str, directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Let ``make`` put what belongs to a directory, or one below it, on an engine."""
    with engine(name) as used:
        _places[directory] = used
        try:
            yield directory
        finally:
            del _places[directory]


def engine_of(directory: pathlib.Path) -> Engine:
    """Return the engine that ``on`` chose for a directory; else SQLite."""
    for place in (directory, *directory.parents):
        if place in _places:
            return _places[place]
    return SQLITE


async def make(
    directory: pathlib.Path, kind: str, clock: Clock | None = None, name: str = ""
) -> Database:
    """Create (when missing) and open a database of a kind."""
    name = name or kind
    url = await engine_of(directory).prepare(directory, kind, name)
    return await open_database(url, kind, clock or SystemClock(), name=name)
