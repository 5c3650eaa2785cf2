"""PostgreSQL by URL: what is refused and why, schemas, poolers."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil

import pytest

import storage.metadata
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from storage import engines
from storage.metadata import check, messages, migrate, migrations, postgresql_url
from storage.metadata.deliver import add_email, prepare_account
from storage.metadata.meta import KINDS, SCHEMAS
from storage.metadata.sql import Sql
from storage.model import NewAccount
from tests.lib import databases
from tests.lib.postgresql import PASSWORD, USER, cluster, pgbouncer
from tests.lib.shard import delivery

SECRET = (PASSWORD, PASSWORD.replace("@", "%40"), "so/secret", "secret%40")
SCHEMA = """
SELECT 'column', table_name || '.' || column_name, data_type || ' ' || is_nullable
       || ' ' || coalesce(column_default, '-') || ' ' || coalesce(collation_name, '-')
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes
WHERE schemaname = 'public'
ORDER BY 1, 2
"""


@pytest.fixture
def made():
    """Return what makes a new, empty database: ``made(**how)`` is its name."""
    server = cluster()
    names = []

    def make(**how):
        names.append(server.database(**how))
        return names[-1]

    yield make
    for name in names:
        server.drop(name)


def opened(url, kind="shard"):
    """Open and close a database; return what it says when it is refused."""

    async def run():
        database = await engines.open_database(url, kind, SystemClock(), name="x")
        await database.close()

    with pytest.raises(MailError) as caught:
        asyncio.run(run())
    assert caught.value.kind is Kind.UNAVAILABLE
    text = caught.value.text
    assert not any(secret in text for secret in SECRET), text
    return text


def migrated(url, kind="shard"):
    return asyncio.run(engines.migrate_database(url, kind, SystemClock()))


# --- what is refused ------------------------------------------------------------------


def test_an_empty_database_says_what_to_run(made):
    url = cluster().url(made())
    assert opened(url).endswith("empty database; run: mailserverd storage migrate")
    assert asyncio.run(engines.inspect_database(url)).schema == 0


def test_a_database_of_another_kind_is_refused(made):
    url = cluster().url(made())
    migrated(url, "queue")
    assert opened(url, "shard").endswith("holds a queue, not a shard")
    with pytest.raises(MailError, match="holds a queue, not a shard"):
        migrated(url, "shard")


def test_somebody_elses_database_is_refused_and_left_alone(made):
    name = made()
    url = cluster().url(name)
    cluster().sql("CREATE TABLE theirs (n integer)", database=name)
    assert opened(url).endswith("not a database of mailserverd")
    with pytest.raises(MailError, match="not a database of mailserverd"):
        migrated(url)
    assert cluster().sql("SELECT count(*) FROM theirs", database=name) == [(0,)]
    found = cluster().sql(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=name
    )
    assert found == [("theirs",)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("schema_version = 1", "older than this release's"),
        ("schema_version = 99, needs_version = 99", "needs a newer mailserverd"),
    ],
)
def test_a_schema_that_is_not_known_is_refused(made, change, says):
    name = made()
    url = cluster().url(name)
    migrated(url)
    cluster().sql(f"UPDATE meta SET {change}", database=name)
    assert says in opened(url)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_encoding_other_than_utf8_is_refused(made, encoding):
    text = opened(cluster().url(made(encoding=encoding)))
    assert f"its encoding is {encoding}, not UTF8" in text
    assert "createdb --encoding=UTF8" in text


def test_who_cannot_be_reached_is_named(made, tmp_path):
    name = made()
    url = cluster().url(name)
    assert "make it with: createdb" in opened(cluster().url("nobody"))
    assert "refuses the user or the password" in opened(url.replace(":not", ":n0t"))
    port = str(cluster().port)
    assert "is PostgreSQL running there?" in opened(url.replace(port, "9"))
    assert "is PostgreSQL running there?" in opened(
        f"postgresql+asyncpg://{USER}@/{name}?host=/nowhere"
    )
    assert "check the URL" in opened(url + "?sslmode=perhaps")
    lost = "?sslmode=verify-full&sslrootcert=/nowhere"
    assert "are the paths in the URL right?" in opened(url + lost)
    (tmp_path / "ca").write_text("no certificate\n")
    bad = f"?sslmode=verify-full&sslrootcert={tmp_path}/ca"
    assert "check sslmode and sslrootcert" in opened(url + bad)


def test_a_database_of_another_owner_says_what_to_do(made):
    name = made()
    cluster().sql(f"ALTER DATABASE {name} OWNER TO postgres")
    with pytest.raises(MailError, match=r"permission denied.*ALTER DATABASE") as caught:
        migrated(cluster().url(name))
    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_server_that_goes_before_the_migration_is_named(made, monkeypatch):
    async def refused(*_args, **_options):
        raise ConnectionRefusedError("gone")

    url = cluster().url(made())
    target, meta = asyncio.run(postgresql_url._look(url))

    async def looked(_url):
        return target, meta

    monkeypatch.setattr(postgresql_url, "_look", looked)
    monkeypatch.setattr(postgresql_url.asyncpg, "connect", refused)
    with pytest.raises(MailError, match="gone; is PostgreSQL running there"):
        migrated(url)


def test_a_unix_socket_is_a_way_too(made):
    server, name = cluster(), made()
    url = f"postgresql+asyncpg://postgres@/{name}?host={server.home}&port={server.port}"
    done = migrated(url)
    assert asyncio.run(engines.inspect_database(url)) == done.meta
    assert asyncio.run(engines.database_size(url)) > 1_000_000


def test_a_driver_that_is_missing_is_named(monkeypatch):
    def missing(_name):
        raise ModuleNotFoundError("No module named 'asyncpg'", name="asyncpg")

    monkeypatch.setattr(engines.importlib, "import_module", missing)
    with pytest.raises(MailError, match=r"pip install 'mailserverd\[postgresql\]'"):
        engines.constructor("metadata", "postgresql+asyncpg://x/y")


# --- schemas --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_revisions_add_up_to_the_tables(made, kind, monkeypatch):
    one, two = made(), made()
    migrated(cluster().url(one), kind)

    def by_revisions(connection, kind, _before, now):
        migrate.begin_meta(connection, kind, now)
        migrations.upgrade(connection, kind)

    monkeypatch.setattr(migrate, "bring_up", by_revisions)
    done = migrated(cluster().url(two), kind)
    assert done.meta.schema == SCHEMAS[kind]
    schemas = [cluster().sql(SCHEMA, database=name) for name in (one, two)]
    assert len(schemas[0]) > 20
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_sorts_by_code_points(made, kind):
    name = made()
    migrated(cluster().url(name), kind)
    texts = (
        "SELECT table_name, column_name, collation_name FROM information_schema.columns"
    )
    rows = cluster().sql(
        f"{texts} WHERE table_schema = 'public' AND data_type = 'text'", database=name
    )
    assert rows
    assert {collation for _, _, collation in rows} == {"C"}


def test_two_migrators_at_once_make_one_schema(made):
    url = cluster().url(made())

    async def both():
        one, two = (
            engines.migrate_database(url, "shard", SystemClock()) for _ in range(2)
        )
        return await asyncio.gather(one, two)

    done = asyncio.run(both())
    assert sorted(one.before for one in done) == [0, SCHEMAS["shard"]]
    assert done[0].meta == done[1].meta


def test_a_migration_that_fails_leaves_nothing(made, monkeypatch):
    name = made()

    def fail(connection, kind, _before, now):
        migrate.begin_meta(connection, kind, now)
        raise ZeroDivisionError

    monkeypatch.setattr(migrate, "bring_up", fail)
    with pytest.raises(ZeroDivisionError):
        migrated(cluster().url(name))
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert cluster().sql(tables, database=name) == [(0,)]


def statements():
    """Yield (module, name, statement) of all modules."""
    for module in pkgutil.iter_modules(storage.metadata.__path__):
        if module.name == "migrations":
            continue
        found = importlib.import_module(f"storage.metadata.{module.name}")
        for name, value in vars(found).items():
            values = value.values() if isinstance(value, dict) else [value]
            for one in values:
                if isinstance(one, Sql):
                    yield module.name, name, one


def test_every_statement_is_understood(made):
    """Each is one of at least one kind's tables."""
    asyncpg = pytest.importorskip("asyncpg")
    urls = {}
    for kind in KINDS:
        name = made()
        migrated(cluster().url(name), kind)
        urls[kind] = cluster().url(name).replace("+asyncpg", "")

    async def refused():
        connections = [await asyncpg.connect(url) for url in urls.values()]
        bad, seen = [], set()
        for module, name, statement in statements():
            if statement in seen:
                continue
            seen.add(statement)
            errors = []
            for connection in connections:
                try:
                    await connection.prepare(statement.postgresql.text)
                except asyncpg.PostgresError as error:
                    errors.append(str(error))
            if len(errors) == len(connections):
                bad.append((module, name, errors))
        for connection in connections:
            await connection.close()
        assert len(seen) > 300
        return bad

    assert asyncio.run(refused()) == []


# --- poolers --------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["", "?prepared=off"])
def test_a_pooler_that_changes_connections(made, option):
    """Found out, or told: many units at once on few connections of the server."""
    url = pgbouncer().url(made()) + option
    migrated(url)
    target, prepared = postgresql_url.target_of(url)
    assert prepared == ("off" if option else "")
    assert "prepared" not in target.dsn

    async def work():
        database = await engines.open_database(url, "shard", SystemClock(), name="p")
        try:
            accounts = range(1, 11)
            for account in accounts:
                await database.write(prepare_account, account, NewAccount())
            for turn in range(5):
                await asyncio.gather(
                    *(
                        database.write(add_email, account, delivery(turn))
                        for account in accounts
                    ),
                    *(
                        database.read(messages.view_head, account, (1, 10))
                        for account in accounts
                    ),
                    database.read(check.check_account, turn + 1, None),
                )
            for account in accounts:
                view = await database.read(messages.view_head, account, (1, 10))
                assert len(view.rows) == 5
                assert await database.read(check.check_account, account, None) == ()
        finally:
            await database.close()

    asyncio.run(work())


def test_options_of_a_url():
    target, prepared = postgresql_url.target_of(
        "postgresql+asyncpg://u:p%40w@h:1/d?sslmode=require&prepared=on"
    )
    assert prepared == "on"
    assert target.dsn == "postgresql://u:p%40w@h:1/d?sslmode=require"
    assert target.where == "postgresql+asyncpg://u:***@h:1/d"
    target, _ = postgresql_url.target_of("postgresql+asyncpg:///d?host=/run/postgresql")
    assert target.dsn == "postgresql:///d?host=%2Frun%2Fpostgresql"


def test_engines_of_both_kinds_are_listed():
    roles = {role for role, scheme in engines.ENGINES if scheme == engines.POSTGRESQL}
    assert roles == {role for role, scheme in engines.ENGINES if scheme == "sqlite"}
    assert set(databases.ENGINES) == {"sqlite", "postgresql"}
