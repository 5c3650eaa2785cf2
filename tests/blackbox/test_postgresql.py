"""The daemon on PostgreSQL: behind a pooler, cut off from it, restarted."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.lib import daemon, postgresql
from tests.lib.clients import Imap, Jmap, Smtp
from tests.lib.postgresql_proxy import HOW, Proxy
from tests.lib.postgresql_site import (
    ALICE,
    BOB,
    PASSWORD,
    PEOPLE,
    deliver,
    faults,
    inbox,
    message,
    on,
    running,
    subjects,
)
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(180)
RESUMED = 2.0  # seconds after the server's return until mail comes in again


# --- behind pgbouncer ----------------------------------------------------------------


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    """A daemon that knows pgbouncer alone, even for making its tables."""
    pool = postgresql.pgbouncer()
    home = tmp_path_factory.mktemp("pooled") / "ours"
    with on(pool) as engine, running(daemon.make(home, *PEOPLE, engine=engine)) as made:
        yield made


def test_mail_comes_and_goes_behind_pgbouncer(pooled: daemon.Daemon) -> None:
    pools = postgresql.pgbouncer().show("POOLS")
    ours = [row for row in pools if row[0].startswith("mail_")]
    assert ours
    assert {row[-1] for row in ours} == {"transaction"}
    assert deliver(pooled, "first", ALICE, BOB)[0] == 250
    with Imap(pooled.port(143), ALICE, PASSWORD) as imap:
        assert imap.append(message("second")).startswith(b"OK")
        imap.ok("SELECT INBOX")
        imap.ok("STORE 1 +FLAGS (\\Flagged important)")
        imap.ok("COPY 1:2 Archive")
        imap.ok("MOVE 2 Trash")
        assert len(imap.ok("SEARCH FLAGGED")[0].split()) == 3
        assert imap.messages("Archive")[1] == message("second")
        assert imap.messages("Trash") == [message("second")]
    with Jmap(pooled.port(80), ALICE, PASSWORD) as jmap:
        (one,) = jmap.ok("Email/query", filter={"hasKeyword": "important",
                         "inMailbox": inbox(jmap)})["ids"]  # fmt: skip
        jmap.ok("Email/set", update={one: {"keywords/$seen": True}})
        (got,) = jmap.ok("Email/get", ids=[one], properties=["keywords"])["list"]
        assert got["keywords"] == {"$flagged": True, "$seen": True, "important": True}
        found = jmap.ok("Email/query", filter={"text": "hello"})["ids"]
        assert len(found) >= 2
    assert subjects(pooled, BOB) == ["first"]


def test_who_waits_is_told_behind_pgbouncer(pooled: daemon.Daemon) -> None:
    with Imap(pooled.port(143), BOB, PASSWORD) as imap:
        imap.ok("SELECT INBOX")
        tag = imap.begin("IDLE")
        assert imap.response().startswith(b"+")
        assert deliver(pooled, "for who waits", BOB)[0] == 250
        assert b" EXISTS" in imap.response()
        imap.send(b"DONE\r\n")
        assert imap.finish(tag)[0].startswith(b"OK")


def test_many_at_once_behind_pgbouncer(pooled: daemon.Daemon) -> None:
    before = subjects(pooled, BOB)
    tokens = [f"many-{number}" for number in range(60)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(lambda one: deliver(pooled, one, BOB)[0], tokens))
    assert codes == [250] * 60
    assert sorted(subjects(pooled, BOB)) == sorted([*before, *tokens])
    assert faults(pooled) == []


# --- connections that break ----------------------------------------------------------


class Senders:
    """Clients that deliver until told to stop; each token is sent once."""

    def __init__(self, ours: daemon.Daemon, number: int) -> None:
        self.ours = ours
        self.sent: set[str] = set()
        self.kept: set[str] = set()  # answered with 250
        self.codes: set[int] = set()
        self.latest = 0.0  # on the monotonic clock, of an answer 250
        self._tokens = itertools.count()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with Smtp(self.ours.port(25)) as smtp:
            while not self._over.is_set():
                token = f"token-{next(self._tokens)}"
                self.sent.add(token)
                code, _ = smtp.message(message(token), ALICE)
                self.codes.add(code)
                if code == 250:
                    self.latest = time.monotonic()
                    self.kept.add(token)

    def go_on(self, count: int) -> None:
        """Wait until so many more were answered."""
        wanted = len(self.kept) + count
        eventually(lambda: len(self.kept) >= wanted, "no mail is taken")

    def check(self) -> None:
        """What was answered is there once, and nothing twice."""
        eventually(lambda: self.kept <= set(subjects(self.ours)), "mail was lost")
        found = subjects(self.ours)
        assert len(found) == len(set(found)), "mail was doubled"
        assert set(found) <= self.sent
        assert self.codes <= {250, 451}
        assert faults(self.ours) == []


def test_commits_that_are_cut_off_lose_and_double_nothing(
    tmp_path: pathlib.Path,
) -> None:
    with (
        Proxy(postgresql.cluster()) as proxy,
        on(proxy) as engine,
        running(daemon.make(tmp_path / "ours", *PEOPLE, engine=engine)) as ours,
    ):
        with Senders(ours, 6) as senders:
            for how in HOW * 2:
                senders.go_on(10)
                proxy.cut(how)
                cuts = proxy.cuts
                eventually(lambda seen=cuts: proxy.cuts > seen, "nothing was cut")
            senders.go_on(10)
        senders.check()
        assert senders.codes == {250}, "an outcome can be found out"
        found = [event["committed"] for event in ours.events("commit-resolved")]
        assert set(found) == {True, False}, found


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_of_the_server_under_load(how: str, tmp_path: pathlib.Path) -> None:
    """Nothing that was answered is lost or doubled; mail comes in again at once."""
    with (
        postgresql.own_cluster() as cluster,
        on(cluster) as engine,
        running(daemon.make(tmp_path / "ours", *PEOPLE, engine=engine)) as ours,
    ):
        with Senders(ours, 8) as senders:
            for _ in range(2):
                senders.go_on(30)
                cluster.stop(how)
                cluster.start()
                back = time.monotonic()
                eventually(lambda since=back: senders.latest > since, "no mail again")
                assert senders.latest - back < RESUMED
            senders.go_on(30)
        senders.check()


def test_a_server_that_is_away_is_a_temporary_error(tmp_path: pathlib.Path) -> None:
    """Of every protocol; and nobody waits for it for long."""
    with (
        postgresql.own_cluster() as cluster,
        on(cluster) as engine,
        running(daemon.make(tmp_path / "ours", *PEOPLE, engine=engine)) as ours,
        Imap(ours.port(143), ALICE, PASSWORD) as imap,
        Jmap(ours.port(80), ALICE, PASSWORD) as jmap,
    ):
        assert deliver(ours, "before", ALICE)[0] == 250
        imap.ok("SELECT INBOX")
        jmap.session()
        cluster.stop("immediate")
        code, text = deliver(ours, "refused", ALICE)
        assert (code, text[:5]) == (451, "4.3.0"), text
        assert imap.append(message("refused")).startswith(b"NO [UNAVAILABLE]")
        assert imap.run("STATUS Archive (MESSAGES)")[0].startswith(b"NO [UNAVAILABLE]")
        assert jmap.request("GET", "/jmap/session")[0] == 503
        status = ours.command("storage", "status", check=False)
        assert [row["name"] for row in status if row.get("problem")] == [
            *("directory", "shard-0", "queue"),
        ]
        cluster.start()
        eventually(lambda: deliver(ours, "after", ALICE)[0] == 250)
        assert set(subjects(ours)) == {"before", "after"}
