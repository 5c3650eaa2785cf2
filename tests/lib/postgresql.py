"""PostgreSQL for tests: one cluster per run, a fresh database for whoever asks.

``cluster()`` starts it when first asked, as a sysadmin would have it: fsync on,
passwords by SCRAM, and a language's collation, so that a column that should sort by
its bytes and does not is found out.  It ends with the run, however that ends.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import functools
import itertools
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tests.lib import ports
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

T = TypeVar("T")
TMP = pathlib.Path("/tmp")  # not pytest's: a socket's path is short
USER = "mail"
PASSWORD = "not:so/secret@all"  # one that a URL must quote
PAGE = 8192
DISCARDED = 30  # databases that nobody needs any more
PREFIX = "mailserverd-postgresql-"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
}
HOW = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,  # as a crash
}
# A child with a death signal dies with the thread that started it: this one stays.
_starter = ThreadPoolExecutor(1, "postgresql")
_numbers = itertools.count(1)


def programs() -> pathlib.Path | None:
    """Return where the newest PostgreSQL's programs are."""
    found = [
        initdb.parent
        for initdb in pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")
    ]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def as_server() -> list[str]:
    """Return what runs a program as who may run PostgreSQL, until we end."""
    dying = ["setpriv", "--pdeathsig", "INT"]
    if os.getuid():
        return dying
    return [*dying, "--reuid", "postgres", "--regid", "postgres", "--init-groups"]


def spawn(command: Sequence[object], log: pathlib.Path) -> subprocess.Popen[bytes]:
    """Start a server in the background, its output in a log."""

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [*as_server(), "--", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )

    return _starter.submit(start).result()


def url_of(port: int, name: str) -> str:
    """Return the URL by which the daemon reaches a database through a port."""
    secret = urllib.parse.quote(PASSWORD, safe="")
    return f"postgresql+asyncpg://{USER}:{secret}@127.0.0.1:{port}/{name}"


class Cluster:
    """A running server of our own; its directory goes with it."""

    def __init__(self) -> None:
        found = programs()
        if found is None:
            pytest.skip("PostgreSQL is not installed (no /usr/lib/postgresql/*/bin)")
        self.programs = found
        self.home = _home()
        self.port = ports.free_base(range(10_000, 32_000), (0,))
        self.process: subprocess.Popen[bytes] | None = None
        self._discarded: list[str] = []
        try:
            self._initialise()
            self.start()
            self.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
        except BaseException:
            self.close()
            raise

    def _initialise(self) -> None:
        command = [
            *as_server(),
            "--",
            str(self.programs / "initdb"),
            *("--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"),
            *("--locale-provider=icu", "--icu-locale=en-US", "--username=postgres"),
            *("--auth-local=trust", "--auth-host=scram-sha-256"),
            *("-D", str(self.home / "data")),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd="/"
        )
        assert done.returncode == 0, done.stderr

    # --- the server ------------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        """Itself: as pgbouncer has one."""
        return self

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self.process is None
        settings = [arg for item in SETTINGS.items() for arg in ("-c", "=".join(item))]
        command = [
            self.programs / "postgres",
            *("-D", self.home / "data", "-p", self.port, "-k", self.home),
            *settings,
        ]
        self.process = spawn(command, self.home / "log")
        eventually(self._answers, "PostgreSQL does not answer")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        with contextlib.suppress(Exception):
            return bool(self.sql("SELECT 1"))
        return False

    def stop(self, how: str = "fast") -> None:
        """Stop the server; ``immediate`` is a crash, recovered from at the start."""
        if self.process is not None:
            process, self.process = self.process, None
            process.send_signal(HOW[how])
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    def restart(self, how: str = "fast") -> None:
        """Stop and start."""
        self.stop(how)
        self.start()

    def close(self) -> None:
        """Stop, and remove everything."""
        self.stop("immediate")
        ports.release(self.port)
        shutil.rmtree(self.home, ignore_errors=True)

    # --- databases -------------------------------------------------------------------

    def sql(self, text: str, *args: object, database: str = "postgres") -> Any:
        """Run a statement as the superuser; return its rows as tuples."""
        return in_thread(functools.partial(self._sql, text, args, database))

    async def _sql(
        self, text: str, args: tuple[object, ...], database: str
    ) -> list[tuple[Any, ...]]:
        asyncpg = pytest.importorskip("asyncpg")
        connection = await asyncpg.connect(
            host=str(self.home), port=self.port, user="postgres", database=database
        )
        try:
            return [tuple(row) for row in await connection.fetch(text, *args)]
        finally:
            await connection.close()

    def database(self, like: str = "", *, encoding: str = "") -> str:
        """Make a database of the daemon's user; return its name.

        It is empty, or a copy of the database ``like``, to which nobody may be
        connected; ``encoding`` other than UTF8 for what must be refused.
        """
        name = f"mail_{os.getpid()}_{next(_numbers)}"
        how = f" TEMPLATE {like}" if like else ""
        if encoding:
            how = " TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
            how += f" ENCODING '{encoding}'"
        self.sql(f"CREATE DATABASE {name} OWNER {USER}{how}")
        return name

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep others from writing to a database's tables; they may read."""
        address = f"host={self.home} port={self.port} user=postgres dbname={name}"
        with subprocess.Popen(
            ["psql", "-AtqX", "-v", "ON_ERROR_STOP=1", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as psql:  # it ends, and the lock with it, when its input ends
            assert psql.stdin is not None
            assert psql.stdout is not None
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            names = [table for (table,) in self.sql(tables, database=name)]
            psql.stdin.write(
                f"BEGIN;\nLOCK TABLE {', '.join(names)} IN EXCLUSIVE MODE;\n"
                "SELECT 'locked';\n"
            )
            psql.stdin.flush()
            assert psql.stdout.readline() == "locked\n"
            yield

    def spoil(self, name: str, *tables: str) -> None:
        """Overwrite the first pages of tables, with the server down for a moment."""
        where = "SELECT pg_relation_filepath($1::text::regclass)"
        paths = [self.sql(where, table, database=name)[0][0] for table in tables]
        self.stop()
        for path in paths:
            with (self.home / "data" / path).open("r+b") as file:
                file.write(b"\xa5" * PAGE)
        self.start()

    def discard(self, name: str) -> None:
        """Remove a database some time: each removal is a checkpoint, and the many
        files of new databases make it slow, but for the first of several alone."""
        self._discarded.append(name)
        if len(self._discarded) > DISCARDED and self.process is not None:
            while self._discarded:
                self.drop(self._discarded.pop())

    def drop(self, name: str) -> None:
        """Remove a database and end whoever is connected to it."""
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def url(self, name: str) -> str:
        """Return a database's URL."""
        return url_of(self.port, name)


class Pgbouncer:
    """pgbouncer in front of a cluster, in transaction mode; else as it comes."""

    def __init__(self, cluster: Cluster) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip("pgbouncer is not installed")
        self.cluster = cluster
        self.home = _home()
        self.port = ports.free_base(range(10_000, 32_000), (0,))
        config = [
            "[databases]",
            f"* = host=127.0.0.1 port={cluster.port}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = scram-sha-256",
            f"auth_file = {self.home}/users",
            f"admin_users = {USER}",
            "pool_mode = transaction",
            "max_client_conn = 500",
        ]
        (self.home / "pgbouncer.ini").write_text("\n".join([*config, ""]))
        (self.home / "users").write_text(f'"{USER}" "{PASSWORD}"\n')
        self.process = spawn([program, self.home / "pgbouncer.ini"], self.home / "log")
        try:
            eventually(self._answers, "pgbouncer does not answer")
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def show(self, what: str) -> list[list[str]]:
        """Ask pgbouncer of itself: ``POOLS``, ``STATS``, ``SERVERS``."""
        address = f"host=127.0.0.1 port={self.port} user={USER} dbname=pgbouncer"
        done = subprocess.run(
            ["psql", "-At", "-F", "\t", "-c", f"SHOW {what}", address],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.split("\t") for line in done.stdout.splitlines()]

    def url(self, name: str) -> str:
        """Return a database's URL through pgbouncer."""
        return url_of(self.port, name)

    def close(self) -> None:
        """Stop it by its pid, and remove everything."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        ports.release(self.port)
        shutil.rmtree(self.home, ignore_errors=True)


def in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a loop of its own, whatever loop the caller is on."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work()))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _home() -> pathlib.Path:
    """Make a directory for a server; its path is short enough for a socket."""
    home = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=TMP))
    descriptor = os.open(home, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # until we end
    _sweep(home.stat().st_mtime - 60)
    if not os.getuid():
        user = pwd.getpwnam("postgres")
        os.chown(home, user.pw_uid, user.pw_gid)
    return home


def _sweep(before: float) -> None:
    """Remove what runs left that were killed: their servers ended with them."""
    for home in TMP.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if home.stat().st_mtime > before:
                continue  # its maker may be about to lock it
            descriptor = os.open(home, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home, ignore_errors=True)
            finally:
                os.close(descriptor)


@functools.cache
def cluster() -> Cluster:
    """Return the cluster of this run; skips where PostgreSQL is not installed."""
    made = Cluster()
    atexit.register(made.close)
    return made


@functools.cache
def pgbouncer() -> Pgbouncer:
    """Return pgbouncer in front of the cluster; skips where it is not installed."""
    made = Pgbouncer(cluster())
    atexit.register(made.close)
    return made


@contextlib.contextmanager
def own_cluster() -> Iterator[Cluster]:
    """Start a cluster for one test alone, which may do to it what it likes."""
    made = Cluster()
    try:
        yield made
    finally:
        made.close()
