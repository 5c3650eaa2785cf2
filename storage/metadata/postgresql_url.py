"""``postgresql+asyncpg://user:password@host:port/database``, as ``storage.engines``
calls it.

Options are libpq's (``host=/run/postgresql`` for a Unix socket, ``sslmode``,
``sslrootcert`` ...), and ``prepared``: ``off`` behind a pooler in transaction mode
(found out when it is not given), ``on`` behind one that keeps statements prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.parse
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.urls import shown
from storage.metadata import migrate
from storage.metadata.meta import (
    EMPTY,
    SCHEMAS,
    SELECT_META,
    SHARD,
    Meta,
    UnfitDatabase,
    check_meta,
)
from storage.metadata.postgresql import PostgresqlDatabase
from storage.metadata.postgresql_errors import DRIVER, cannot_open
from storage.metadata.postgresql_link import CONNECT_LIMIT, Target
from storage.metadata.postgresql_reader import PostgresqlReader
from storage.metadata.postgresql_writer import LOCK

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mailserverd.core.ports import Clock

log = get_logger("storage")

OLDEST = 13  # the first release that we know to work
LOOK_LIMIT = 10.0  # seconds for each thing that is asked of a server at the start
SURVEY = """
SELECT current_setting('server_encoding'), current_setting('server_version_num')::int,
       current_setting('synchronous_commit'), current_setting('fsync'),
       pg_backend_pid(), pg_is_in_recovery(),
       (SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()),
       to_regclass('meta') IS NOT NULL
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What a server says of itself and of a database, before it is used."""

    encoding: str
    version: int  # 150018: 15.18
    synchronous_commit: str
    fsync: str
    backend: int  # the pid that serves us
    standby: bool
    tables: int
    has_meta: bool


def target_of(url: str) -> tuple[Target, str]:
    """Return where a URL leads, and its option ``prepared``."""
    parts = urllib.parse.urlsplit(url)
    options = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    prepared = dict(options).get("prepared", "")
    rest = urllib.parse.urlencode([o for o in options if o[0] != "prepared"])
    dsn = parts._replace(scheme="postgresql", query=rest).geturl()
    if not parts.netloc:  # urllib leaves out "//" before an empty one
        dsn = dsn.replace("postgresql:", "postgresql://", 1)
    where = shown(url).partition("?")[0]
    return Target(dsn, where, prepared=prepared != "off"), prepared


async def open_database(
    url: str, kind: str, clock: Clock, *, name: str
) -> PostgresqlDatabase:
    """Open a database of this release's schema."""
    target, meta = await _look(url)
    check_meta(meta, kind, target.where)
    return PostgresqlDatabase(target, meta.uuid, clock, name=name, serial=kind != SHARD)


async def open_reader(
    url: str, kind: str, clock: Clock, *, name: str
) -> PostgresqlReader:
    """Open a database for reading alone."""
    target, meta = await _look(url)
    check_meta(meta, kind, target.where)
    return PostgresqlReader(target, meta.uuid, clock, name=name)


async def inspect_database(url: str) -> Meta:
    """Read a database's meta row."""
    return (await _look(url))[1]


async def size_of(url: str) -> int:
    """Return the octets of the database on the server's disk."""
    target, _ = target_of(url)
    rows = await _ask(target, "SELECT pg_database_size(current_database())")
    size: int = rows[0][0]
    return size


async def migrate_database(url: str, kind: str, clock: Clock) -> migrate.Migrated:
    """Make the tables of an empty database, or bring an older one up to date.

    One transaction under the lock of the database's writers: two at once follow one
    another, and a failure leaves what was there.
    """
    target, _ = await _look(url)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(
            target.dsn, timeout=CONNECT_LIMIT, statement_cache_size=0
        ),
        connect_args={
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"m{uuid.uuid4().hex}",
        },
        poolclass=NullPool,
    )
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(
                _migrate, kind, int(clock.now()), target.where
            )
    except DBAPIError as error:  # of the driver's; SQLAlchemy wraps it twice
        cause = error.orig.__cause__ if error.orig else None
        raise cannot_open(cause or error, target.where) from error
    except DRIVER as error:  # of connecting
        raise cannot_open(error, target.where) from error
    finally:
        await engine.dispose()


def _migrate(
    connection: Connection, kind: str, now: int, where: str
) -> migrate.Migrated:
    connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK}, 0)"))
    # As it is under the lock: another may have been at it.
    has_meta = connection.execute(text("SELECT to_regclass('meta') IS NOT NULL"))
    before = _read_meta(connection) if has_meta.scalar() else EMPTY
    migrate.refuse_others(before, kind, where)
    if before.schema < SCHEMAS[kind]:
        migrate.bring_up(connection, kind, before, now)
    return migrate.Migrated(_read_meta(connection), before.schema)


def _read_meta(connection: Connection) -> Meta:
    row = connection.execute(text(SELECT_META)).one()
    return Meta(*row)


# --- looking at a server ----------------------------------------------------------


async def _look(url: str) -> tuple[Target, Meta]:
    """Find out what has to be known before a database is used.

    UNAVAILABLE, saying what to do, for one that cannot be reached or used.
    """
    target, prepared = target_of(url)
    connection = await _connect(target)
    pid = connection.get_server_pid()  # as a pooler says, if there is one
    try:
        # In a transaction: behind a pooler the next statement may be another server's.
        await connection.execute("BEGIN")
        survey = Survey(*(await connection.fetch(SURVEY))[0])
        _check(survey, target)
        meta = EMPTY
        if survey.has_meta:
            rows = await connection.fetch(SELECT_META)
            meta = Meta(*rows[0]) if rows else meta
        await connection.execute("ROLLBACK")
    except DRIVER as error:
        raise cannot_open(error, target.where) from error
    finally:
        await _close(connection)
    if survey.tables and not meta.schema:
        raise UnfitDatabase(
            Kind.UNAVAILABLE, f"{target.where}: not a database of mailserverd"
        )
    if not prepared and survey.backend != pid:
        target.prepared = False
    target.synchronous = survey.synchronous_commit != "off"
    return target, meta


def _check(survey: Survey, target: Target) -> None:
    """Refuse a server or a database that could not hold mail faithfully."""
    if survey.version < OLDEST * 10_000:
        raise UnfitDatabase(
            Kind.UNAVAILABLE,
            f"{target.where}: PostgreSQL {survey.version // 10_000} is too old; "
            f"{OLDEST} or newer is needed",
        )
    if survey.encoding != "UTF8":
        raise UnfitDatabase(
            Kind.UNAVAILABLE,
            f"{target.where}: its encoding is {survey.encoding}, not UTF8; make a "
            "database with: createdb --encoding=UTF8 --template=template0",
        )
    if survey.standby:
        raise MailError(
            Kind.UNAVAILABLE,
            f"{target.where}: the server is a standby, not the primary",
        )
    if survey.fsync == "off":
        log.warning("fsync-off", database=target.where, what="a crash may lose mail")


async def _connect(target: Target) -> asyncpg.Connection[Any]:
    try:
        return await asyncpg.connect(
            target.dsn,
            timeout=CONNECT_LIMIT,
            statement_cache_size=0,
            command_timeout=LOOK_LIMIT,
            server_settings={"application_name": "mailserverd"},
        )
    except (*DRIVER, ValueError) as error:
        raise cannot_open(error, target.where) from error


async def _ask(target: Target, statement: str) -> list[Any]:
    connection = await _connect(target)
    try:
        await connection.execute("BEGIN")
        rows: list[Any] = await connection.fetch(statement)
    except DRIVER as error:
        raise cannot_open(error, target.where) from error
    else:
        return rows
    finally:
        await _close(connection)


async def _close(connection: asyncpg.Connection[Any]) -> None:
    with contextlib.suppress(*DRIVER):
        await connection.close(timeout=CONNECT_LIMIT)
