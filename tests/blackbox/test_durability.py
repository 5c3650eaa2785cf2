"""A power cut: what was answered survives the loss of all that was not yet synced.

The daemon runs under strace, alone and as several processes.  The trace says what was
written, synced and answered, in their order; from it the data directory is made again
as a power cut would have left it at some moment, and opened.  DURABILITY_CUTS is the
number of such moments ("all": at every answer and at every sync).
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from storage.model import FLAGGED
from storage.queue import FINAL, Page
from tests.lib import clients, daemon, instance, medium, trace
from tests.lib.daemon import Daemon
from tests.lib.witness import OUTSIDE, Promise, Witness

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from mailserverd.app.graph import Graph
    from tests.lib.instance import Kept
    from tests.lib.medium import Medium
    from tests.lib.trace import Call

    Stored = dict[tuple[str, str], list[Kept]]  # by (token, address)
    Queued = dict[str, list[bytes]]  # by token

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]
CUTS = os.environ.get("DURABILITY_CUTS", "24")
PASSWORD = "durable"
ACCOUNTS = tuple(f"user{n}@example.test" for n in range(6))
ALICE, BOB = ACCOUNTS[:2]
ONE_SHARD = [ALICE, ACCOUNTS[4]]
SETTINGS = """
[outbound]
port = 9
[dns]
servers = ["127.0.0.1:9"]
timeout = 0.2
"""
SMALL, SPOOLED, LARGE = 500, 300_000, 4_300_000  # octets: in memory, file, own segment
SESSIONS, EACH = 10, 8
CHANGES = {"fsync", "fdatasync", "rename", "unlink", "ftruncate"}


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A promise, and when its answer began to leave."""

    moment: int
    promise: Promise


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """Lives of a daemon: what it did, answered, and had stored in the end."""

    home: pathlib.Path
    start: pathlib.Path  # a copy of the home before the first life
    calls: list[Call]
    answers: list[Answer]
    alone: list[Answer]  # to one recipient each, by one client
    crowd: list[Answer]  # by several clients at once
    stored: Stored
    shards: dict[str, int]  # by address
    base: int  # of its ports

    def medium(self, syncs: Callable[[Call], bool] = lambda _: True) -> Medium:
        return medium.Medium(self.home / "data", self.start / "data", syncs)

    def answered(self, moment: int) -> list[Promise]:
        return [a.promise for a in self.answers if a.moment <= moment]

    def syncs(self, answers: list[Answer]) -> float:
        """Return the number of syncs per message from the first to the last."""
        first, last = answers[0].moment, answers[-1].moment
        ignores, names = self.medium().ignores, {"fsync", "fdatasync"}
        found = [c for c in self.calls if c.name in names and not ignores(c.path)]
        between = [c for c in found if first < c.entry < last]
        return len(between) / (len(answers) - 1)


# --- two lives ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "workers"])
def history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[History]:
    base = tmp_path_factory.mktemp("durability")
    settings = f"{SETTINGS}[server]\nworkers = {request.param}\n"
    ours = instance.make(base / "ours", ACCOUNTS, PASSWORD, settings)
    shutil.copytree(ours.home, base / "start")
    witness = Witness(ours, PASSWORD)
    one, two = base / "first.trace", base / "second.trace"
    with trace.running(ours, one):
        assert len(ours.children()) > request.param or request.param == 1
        alone, crowd = first_life(witness)
        assert ours.stop() == 0
    first = len(witness.promises)
    with trace.running(ours, two):
        second_life(witness)
        assert ours.stop() == 0
    calls = list(trace.calls(one))
    answers = moments(calls, witness.promises[:first])
    later = list(trace.calls(two, trace.length(one)))
    answers += moments(later, witness.promises[first:])
    stored, shards = asyncio.run(in_the_end(ours))
    assert len({shards[address] for address in ONE_SHARD}) == 1
    yield History(
        ours.home,
        base / "start",
        calls + later,
        sorted(answers, key=lambda a: a.moment),
        answers[alone],
        sorted(answers[crowd], key=lambda a: a.moment),
        stored,
        shards,
        ours.base,
    )
    shutil.rmtree(base)


def first_life(witness: Witness) -> tuple[slice, slice]:
    """Send in every way; return which promises are of one client, which of many."""
    ours = witness.ours
    with clients.Smtp(ours.port(25)) as smtp:
        for number in range(10):
            witness.smtp(smtp, SMALL, ACCOUNTS[number % 2])
        witness.smtp(smtp, SPOOLED, ALICE)
        witness.smtp(smtp, SMALL, *ACCOUNTS)
        witness.smtp(smtp, LARGE, BOB)
        witness.smtp(smtp, SPOOLED, *ACCOUNTS)
    with clients.Imap(ours.port(143), ALICE, PASSWORD) as imap:
        appended = witness.append(imap, SMALL, ALICE)
        witness.append(imap, SPOOLED, ALICE)
        witness.flag(imap, appended)
    with clients.Jmap(ours.port(80), BOB, PASSWORD) as jmap:
        inbox = witness.inbox(jmap)
        witness.email_set(jmap, inbox, BOB)
        witness.email_import(jmap, inbox, SMALL, BOB)
        witness.email_import(jmap, inbox, SPOOLED, BOB)
        witness.submission_set(jmap, BOB, inbox, OUTSIDE)
        witness.submission_set(jmap, BOB, inbox, OUTSIDE, *ACCOUNTS[2:5])
    witness.submit(ALICE, OUTSIDE)
    witness.submit(ALICE, OUTSIDE, *ACCOUNTS[2:5])
    one_by_one = len(witness.promises)
    together(witness, [(to,) for to in ONE_SHARD * (SESSIONS * EACH // 2)])
    many = slice(one_by_one, one_by_one + SESSIONS * EACH)
    together(witness, [ACCOUNTS[n % 6 : n % 6 + 1 + n % 3] for n in range(40)])
    return slice(2, 10), many


def together(witness: Witness, recipients: list[tuple[str, ...]]) -> None:
    """Send messages by several sessions at once."""
    waiting = iter(recipients)

    def session() -> None:
        with clients.Smtp(witness.ours.port(25)) as smtp:
            for to in waiting:
                witness.smtp(smtp, 5000, *to)

    with concurrent.futures.ThreadPoolExecutor(SESSIONS) as pool:
        for done in [pool.submit(session) for _ in range(SESSIONS)]:
            done.result()


def second_life(witness: Witness) -> None:
    """Go on after a stop that emptied the logs into the databases."""
    with clients.Smtp(witness.ours.port(25)) as smtp:
        witness.smtp(smtp, SMALL, ALICE)
        witness.smtp(smtp, SMALL, *ACCOUNTS)
        witness.smtp(smtp, SPOOLED, BOB)
    witness.submit(BOB, OUTSIDE, *ACCOUNTS)


def moments(calls: list[Call], promises: list[Promise]) -> list[Answer]:
    sent = trace.sent(calls)
    return [Answer(promise.moment(sent), promise) for promise in promises]


async def in_the_end(ours: Daemon) -> tuple[Stored, dict[str, int]]:
    async with instance.opened(ours.config) as graph:
        rows = await graph.accounts.account_list()
        return await instance.contents(graph), {r["address"]: r["shard"] for r in rows}


# --- the order ------------------------------------------------------------------------


def broken_promises(history: History, disk: Medium) -> list[str]:
    """Play the trace; return the answers that left before what they stand for."""
    found = []
    calls = collections.deque(history.calls)
    for answer in history.answers:
        while calls and calls[0].exit < answer.moment:
            disk.play([calls.popleft()])
        found += [
            f"{answer.promise.way} {answer.promise.token}: {what}"
            for what in lacking(history, disk, answer.promise)
        ]
    return found


def lacking(history: History, disk: Medium, promise: Promise) -> Iterator[str]:
    """Yield what of a promise is not durable: octets, or rows that name them."""
    for address in promise.to:
        (kept,) = history.stored[promise.token, address]
        if not disk.holds(kept.raw, ".open", ".seg"):
            yield f"octets for {address}"
        shard = f"shard-{history.shards[address]}.db"
        places = [f"/{shard}", f"/{shard}-wal"]
        if len(promise.to) + len(promise.remote) > 1:
            places += ["/queue.db", "/queue.db-wal"]  # an acceptance
        if not disk.holds(hashlib.sha256(kept.raw).digest(), *places):
            yield f"rows for {address}"
    if promise.remote and not disk.holds(promise.token.encode(), "/queue.db-wal"):
        yield "rows of the queue"


def test_octets_and_rows_are_synced_before_each_answer(history: History) -> None:
    assert broken_promises(history, history.medium()) == []
    ways = collections.Counter(a.promise.way for a in history.answers)
    assert set(ways) == {"smtp", "append", "store", "set", "import", "submission"}


@pytest.mark.parametrize(
    ("lie", "noticed"),
    [(".open", "octets"), ("-wal", "rows"), ("/blobs", "octets"), ("/data", "rows")],
)
def test_a_missing_sync_would_be_noticed(
    history: History, lie: str, noticed: str
) -> None:
    disk = history.medium(lambda call: not call.path.endswith(lie))
    assert [one for one in broken_promises(history, disk) if noticed in one]


def say(text: str) -> None:
    print(text)  # noqa: T201 - shown when the test fails, and with -s


def test_one_sync_for_octets_and_one_for_rows(history: History) -> None:
    alone, crowd = history.syncs(history.alone), history.syncs(history.crowd)
    say(f"syncs per message: {alone:.2f} alone, {crowd:.2f} with {SESSIONS} sessions")
    assert alone <= 2
    assert crowd <= 1


# --- the cut --------------------------------------------------------------------------


async def survey(config: str) -> tuple[Stored, Queued]:
    """Open what is left; return mail and what is queued."""
    async with instance.opened(config) as graph:
        assert await graph.acceptances.catch_up(graph.deliver) == 0
        checked = await graph.upkeep.check(lambda _: None)
        assert checked["faults"] == []
        return await instance.contents(graph), await outgoing(graph)


async def outgoing(graph: Graph) -> Queued:
    queued: Queued = {}
    for entry in await graph.queue.list(Page(limit=1000)):
        assert all(to.state not in FINAL for to in entry.recipients)
        raw = await graph.stores.blobs.read(entry.message.blob)
        token = instance.TOKEN.search(raw)
        assert token is not None
        queued.setdefault(token[1].decode(), []).append(raw)
    return queued


def copy_of(history: History, image: dict[str, bytes], home: pathlib.Path) -> Daemon:
    """Make a home of what a cut left."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(history.start, home, ignore=shutil.ignore_patterns("data"))
    (home / "data").mkdir()
    medium.write(image, home / "data")
    left = Daemon(home, history.base, shards=instance.SHARDS)
    left.lay_out()
    return left


def check(history: History, moment: int, stored: Stored, queued: Queued) -> None:
    """Everything answered is there, nothing twice, nothing unheard of."""
    tried = {(a.promise.token, to) for a in history.answers for to in a.promise.to}
    for key, copies in stored.items():
        assert key in tried
        assert len(copies) == 1, f"{key} is there {len(copies)} times"
    assert all(len(copies) == 1 for copies in queued.values())
    for promise in history.answered(moment):
        for address in promise.to:
            key = promise.token, address
            assert key in stored, f"{promise.way} {key} is lost"
            assert stored[key][0].raw == history.stored[key][0].raw
            assert stored[key][0].raw.endswith(promise.raw)
            assert stored[key][0].system & FLAGGED or not promise.flagged
        if promise.remote:
            assert promise.token in queued, f"{promise.way} {promise.token} is lost"
            assert queued[promise.token][0].endswith(promise.raw)


def cuts(history: History, count: str, rng: random.Random) -> list[tuple[int, bool]]:
    """Return (moment, whether chance wrote pages) in order."""
    last = history.calls[-1].exit
    strict = [(a.moment, False) for a in history.answers if 0 <= a.moment < last]
    chance = [(call.exit, True) for call in history.calls if call.name in CHANGES]
    if count != "all":
        half = int(count) // 2
        strict = rng.sample(strict, min(half, len(strict)))
        chance = rng.sample(chance, min(half, len(chance)))
    return sorted(strict + chance)


def cut_and_check(
    history: History, count: str, directory: pathlib.Path, rng: random.Random
) -> None:
    """Cut the power at several moments, and look at what is left each time."""
    disk, calls = history.medium(), collections.deque(history.calls)
    planned = cuts(history, count, rng)
    say(f"{len(planned)} power cuts")
    for moment, chance in planned:
        while calls and calls[0].exit < moment:
            disk.play([calls.popleft()])
        left = copy_of(history, disk.image(rng if chance else None), directory / "cut")
        try:
            check(history, moment, *asyncio.run(survey(left.config)))
        except BaseException as error:
            error.add_note(f"cut at {moment}, by {'chance' if chance else 'the book'}")
            raise


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("DURABILITY_SEED", random.SystemRandom().getrandbits(32)))
    say(f"DURABILITY_SEED={seed}")
    return random.Random(seed)


def test_a_power_cut_loses_nothing_that_was_answered(
    history: History, tmp_path: pathlib.Path, rng: random.Random
) -> None:
    cut_and_check(history, CUTS, tmp_path, rng)


def test_a_daemon_starts_after_a_power_cut_and_may_be_cut_off_again(
    history: History, tmp_path: pathlib.Path, rng: random.Random
) -> None:
    disk, cut = history.medium(), rng.choice(history.crowd).moment + 1
    disk.play(call for call in history.calls if call.exit < cut)
    left = copy_of(history, disk.image(rng), tmp_path / "left")
    shutil.copytree(left.home, tmp_path / "start")
    witness = Witness(left, PASSWORD, seed=2)
    before = history.answered(cut)
    with trace.running(left, tmp_path / "trace"):
        third_life(witness)
        read_back(left, [*before, *witness.promises])
        left.kill()
    calls = list(trace.calls(tmp_path / "trace"))
    answers = [Answer(-1, promise) for promise in before]
    answers += moments(calls, witness.promises)
    stored, shards = asyncio.run(in_the_end(left))
    later = dataclasses.replace(
        history,
        home=left.home,
        start=tmp_path / "start",
        calls=calls,
        answers=[*answers, *unanswered(history, cut)],
        stored=stored,
        shards=shards,
    )
    cut_and_check(later, "all" if CUTS == "all" else "8", tmp_path, rng)


def unanswered(history: History, cut: int) -> list[Answer]:
    """What was under way may be there or not."""
    return [Answer(1 << 40, a.promise) for a in history.answers if a.moment > cut]


def third_life(witness: Witness) -> None:
    with clients.Smtp(witness.ours.port(25)) as smtp:
        witness.smtp(smtp, SMALL, ALICE)
        witness.smtp(smtp, SMALL, *ACCOUNTS)
        witness.smtp(smtp, LARGE, BOB)
    witness.submit(BOB, OUTSIDE, *ACCOUNTS)


def read_back(ours: Daemon, promises: list[Promise]) -> None:
    """Read everything over IMAP, and find one message by its text over JMAP."""
    for address in ACCOUNTS:
        with clients.Imap(ours.port(143), address, PASSWORD) as imap:
            found = collections.Counter(
                instance.TOKEN.findall(b"".join(imap.messages()))
            )
            bodies = imap.messages()
        mine = [p for p in promises if address in p.to]
        assert {p.token.encode() for p in mine} <= set(found)
        assert set(found.values()) <= {1}
        for promise in mine:
            assert sum(body.endswith(promise.raw) for body in bodies if promise.raw) < 2
            assert any(body.endswith(promise.raw) for body in bodies)
    with clients.Jmap(ours.port(80), BOB, PASSWORD) as jmap:
        token = next(p.token for p in promises if BOB in p.to)
        assert len(jmap.ok("Email/query", filter={"text": token})["ids"]) == 1


def test_a_power_cut_while_blobs_are_collected_loses_nothing(
    history: History, tmp_path: pathlib.Path, rng: random.Random
) -> None:
    home, start, output = (tmp_path / name for name in ("home", "start", "trace"))
    for copy in (home, start):
        shutil.copytree(history.home, copy)
        Daemon(copy, 0, shards=instance.SHARDS).lay_out()
    what = [sys.executable, "-m", "tests.lib.collect", str(home / "mailserverd.toml")]
    done = subprocess.run(
        [*trace.wrapper(output), *what],
        check=True,
        stdout=subprocess.PIPE,
        cwd=daemon.ROOT,
    )
    kept = {tuple(key) for key in json.loads(done.stdout.splitlines()[-1])}
    assert 50 < len(kept) < len(history.stored)
    left = [
        Answer(-1, dataclasses.replace(a.promise, to=to))
        for a in history.answers
        if (to := tuple(to for to in a.promise.to if (a.promise.token, to) in kept))
        or a.promise.remote
    ]
    gone = [Answer(1 << 40, a.promise) for a in history.answers]
    collected = dataclasses.replace(
        history,
        home=home,
        start=start,
        calls=list(trace.calls(output)),
        answers=[*left, *gone],
    )
    cut_and_check(collected, "all" if CUTS == "all" else "16", tmp_path, rng)


def test_what_init_made_survives_a_power_cut(tmp_path: pathlib.Path) -> None:
    """An instance that does not live on cannot keep what it answers."""
    home, empty, output = (tmp_path / name for name in ("home", "empty", "trace"))
    home.mkdir()
    empty.mkdir()
    names = ["--hostname", "mail.example.test", "--account", f"{ALICE}:{PASSWORD}"]
    subprocess.run(
        [*trace.wrapper(output), *daemon.COMMAND, "init", str(home / "made"), *names],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(daemon.ROOT)},
    )
    disk = medium.Medium(home, empty)
    disk.play(trace.calls(output))
    medium.write(disk.image(), tmp_path / "left")
    stored, shards = asyncio.run(in_the_end(Daemon(tmp_path / "left/made", 0)))
    assert (stored, shards) == ({}, {ALICE: 0})
