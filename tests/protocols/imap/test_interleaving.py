"""Several clients at once on one mailbox: each one's picture stays true.

Every client keeps the list of uids that its sequence numbers stand for, changed only
by EXISTS, EXPUNGE and VANISHED, and checks it against every UID that it is told.
"""

from __future__ import annotations

import asyncio
import random
import re
from typing import TYPE_CHECKING

import pytest

from protocols.imap.wire import sequence
from storage.model import EmailPatch
from tests.lib.imap import USER, Client, ImapHost, imap_host

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

MESSAGE = b"Subject: x\r\n\r\nx\r\n"
FETCHED = re.compile(rb"\* (\d+) FETCH \((.*)\)")
UID = re.compile(rb"\bUID (\d+)")
FLAGS = re.compile(rb"\bFLAGS (\([^)]*\))")
MODSEQ = re.compile(rb"MODSEQ \(?(\d+)\b")  # of a message, or HIGHESTMODSEQ
COUNT = re.compile(rb"\bn(\d+)\b")
COMMANDS = (
    ("FETCH {seqs} (UID FLAGS)", False),
    ("UID FETCH 1:* (FLAGS)", True),
    ("STORE {seqs} +FLAGS (\\Flagged)", False),
    ("STORE {seqs} -FLAGS.SILENT (\\Flagged)", False),
    ("UID STORE {uids} +FLAGS (\\Deleted work)", True),
    ("SEARCH UNSEEN", False),
    ("UID SEARCH DELETED", True),
    ("EXPUNGE", True),
    ("UID EXPUNGE {uids}", True),
    ("COPY {seqs} INBOX", True),
    ("UID MOVE {uids} Trash", True),
    ("NOOP", True),
    ("FETCH {seqs} (UID BODY[])", False),
)


class Player:
    """One client with its picture of the mailbox."""

    def __init__(self, client: Client, seed: int, *, qresync: bool) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.qresync = qresync
        self.uids: list[int | None] = []  # None: told to exist, not yet its uid
        self.flags: dict[int, bytes] = {}

    async def begin(self) -> None:
        if self.qresync:
            await self.client.ok("ENABLE QRESYNC")
        self.hear(await self.client.ok("SELECT INBOX"), expunge=False)
        await self.run("UID FETCH 1:* (FLAGS)", expunge=True)

    def hear(self, told: list[bytes], *, expunge: bool) -> None:
        for line in told:
            words = line.split()
            if line.endswith(b" EXISTS"):
                assert int(words[1]) >= len(self.uids)
                self.uids += [None] * (int(words[1]) - len(self.uids))
            elif line.endswith(b" EXPUNGE"):
                assert expunge, line
                assert not self.qresync
                del self.uids[int(words[1]) - 1]
            elif words[1] == b"VANISHED":
                assert expunge, line
                gone = sequence.parse(words[-1]).resolve(0)
                uids = {uid for a, b in gone for uid in range(a, b + 1)}
                self.vanish(uids, earlier=words[2] == b"(EARLIER)")
            elif match := FETCHED.match(line.partition(b"\r\n")[0] + b")"):
                self.note(int(match[1]), match[2])

    def vanish(self, gone: set[int], *, earlier: bool) -> None:
        assert not earlier
        unknown = gone - set(self.uids)  # of those that EXISTS alone told of
        for uid in unknown:  # it lies before the next uid that is known
            above = [i for i, known in enumerate(self.uids) if known and known > uid]
            place = (above[0] if above else len(self.uids)) - 1
            assert self.uids[place] is None
            del self.uids[place]
        self.uids = [uid for uid in self.uids if uid not in gone]

    def note(self, seq: int, items: bytes) -> None:
        known = self.uids[seq - 1]
        if match := UID.search(items):
            assert known in {None, int(match[1])}
            self.uids[seq - 1] = known = int(match[1])
        if known is not None and (match := FLAGS.search(items)):
            self.flags[known] = match[1]

    async def run(
        self, command: str, *, expunge: bool, silent: Sequence[int] = ()
    ) -> tuple[bytes, list[bytes]]:
        reply, told = await self.client.run(command)
        if reply.startswith(b"OK"):  # what it asked for it is not told
            for uid in silent:
                self.flags[uid] = self.flags[uid].replace(b"\\Flagged", b"")
        self.hear(told, expunge=expunge)
        assert reply.startswith((b"OK", b"NO [EXPUNGEISSUED]")), (command, reply)
        return reply, told

    async def step(self) -> None:
        command, expunge = self.random.choice(COMMANDS)
        known = [uid for uid in self.uids if uid is not None]
        if "{" in command and not known:
            literal = f"{{{len(MESSAGE)}+}}\r\n{MESSAGE.decode()}"
            await self.run(f"APPEND INBOX {literal}", expunge=True)
            await self.run("UID FETCH 1:* (FLAGS)", expunge=True)
            return
        size = min(len(known), self.random.choice((1, 2, 5)))
        uids = sorted(self.random.sample(known, size))
        seqs = sorted(self.uids.index(uid) + 1 for uid in uids)
        filled = command.format(
            uids=sequence.encode(uids).decode(), seqs=sequence.encode(seqs).decode()
        )
        silent = uids if "SILENT" in command else ()
        await self.run(filled, expunge=expunge, silent=silent)

    async def play(self, steps: int) -> None:
        for _ in range(steps):
            await self.step()
            await asyncio.sleep(0)


class Swapper(Player):
    """One that counts in a keyword by compare and swap (RFC 7162 section 3.1.3)."""

    def __init__(self, client: Client, seed: int) -> None:
        super().__init__(client, seed, qresync=False)
        self.modseqs: dict[int, int] = {}  # at which the flags were as known
        self.won: list[tuple[int, int]] = []  # uid and the modseq that was replaced

    async def begin(self) -> None:
        await self.client.ok("ENABLE CONDSTORE")
        await super().begin()
        await self.run("UID FETCH 1:* (FLAGS MODSEQ)", expunge=True)

    def note(self, seq: int, items: bytes) -> None:
        super().note(seq, items)
        uid, match = self.uids[seq - 1], MODSEQ.search(items)
        if uid is not None and match:
            assert int(match[1]) >= self.modseqs.get(uid, 0), items
            if FLAGS.search(items):
                self.modseqs[uid] = int(match[1])

    async def step(self) -> None:
        uid = self.random.choice(self.uids[:4]) if self.uids else None
        if uid not in self.modseqs or self.random.random() < 0.3:
            await super().step()
            return
        match, modseq = COUNT.search(self.flags[uid]), self.modseqs[uid]
        number = int(match[1]) + 1 if match else 1
        command = f"UID STORE {uid} (UNCHANGEDSINCE {modseq}) FLAGS (n{number})"
        reply, told = await self.run(command, expunge=True)
        here = any(b"UID %d " % uid in line for line in told)  # not expunged meanwhile
        if here and b"[MODIFIED" not in reply:
            self.won.append((uid, modseq))


class Returner(Player):
    """One that loses its connection, and catches up (RFC 7162 section 3.2.5)."""

    def __init__(self, host: ImapHost, client: Client, seed: int) -> None:
        super().__init__(client, seed, qresync=True)
        self.host = host
        self.uidvalidity = self.modseq = self.returned = 0

    async def begin(self) -> None:
        await super().begin()
        [[status, *_]] = [await self.client.ok("STATUS INBOX (UIDVALIDITY)")]
        self.uidvalidity = int(status.rstrip(b")").split()[-1])

    def vanish(self, gone: set[int], *, earlier: bool) -> None:
        for uid in gone:
            self.flags.pop(uid, None)
        if not earlier:
            super().vanish(gone, earlier=False)

    async def run(
        self, command: str, *, expunge: bool, silent: Sequence[int] = ()
    ) -> tuple[bytes, list[bytes]]:
        reply, told = await super().run(command, expunge=expunge, silent=silent)
        if expunge:  # what vanished was told, too
            found = [int(n) for line in (*told, reply) for n in MODSEQ.findall(line)]
            self.modseq = max([self.modseq, *found])
        return reply, told

    async def step(self) -> None:
        if self.modseq and self.random.random() < 0.2:
            await self.come_back()
        else:
            await super().step()

    async def come_back(self) -> None:
        if self.random.random() < 0.5:  # nobody reads the answer
            self.client.begin(self.random.choice(("EXPUNGE", "UID FETCH 1:* (FLAGS)")))
        await self.client.close()
        self.client = await self.host.client()
        await self.client.ok("ENABLE QRESYNC")
        complete = all(uid in self.flags for uid in self.uids)  # up to the modseq
        self.uids = []
        self.returned += 1
        known = ""
        if self.flags and self.random.random() < 0.5:
            known = " " + sequence.encode(sorted(self.flags)).decode()
        told = await self.client.ok(
            f"SELECT INBOX (QRESYNC ({self.uidvalidity} {self.modseq}{known}))"
        )
        self.hear(told, expunge=True)
        [following] = [line.split()[3] for line in told if b"[UIDNEXT " in line]
        self.modseq = max(int(n) for line in told for n in MODSEQ.findall(line))
        await super().run("UID FETCH 1:* (UID)", expunge=True)
        here = {uid for uid in self.uids if uid is not None}
        assert set(self.flags) <= here, "what vanished was not told"
        missing = sorted(here - set(self.flags))
        if complete and not known:
            assert all(uid >= int(following.rstrip(b"]")) for uid in missing)
        if missing:
            uids = sequence.encode(missing).decode()
            await super().run(f"UID FETCH {uids} (FLAGS)", expunge=True)


async def from_elsewhere(host: ImapHost, rng: random.Random) -> None:
    """What JMAP and deliveries do meanwhile."""
    access = await host.host.account(USER)
    messages = host.host.messages
    for _ in range(25):
        await host.host.send(MESSAGE, USER)
        boxes = (await host.host.mailboxes.list(access)).mailboxes
        view = await messages.view(access, boxes[0].mailbox_id)
        chosen = rng.choice(list(view.email_ids) or [0])
        if rng.random() < 0.5:
            patch = EmailPatch(chosen, add_keywords=("$seen", "$forwarded"))
            await messages.update(access, [patch])
        else:
            await messages.destroy(access, [chosen])


@pytest.mark.parametrize("seed", range(4))
def test_clients_at_once(tmp_path: pathlib.Path, seed: int) -> None:
    async def main() -> None:
        async with imap_host(tmp_path) as host:
            players = []
            for number in range(4):
                client = await host.client()
                for _ in range(4):
                    await client.append("INBOX", MESSAGE)
                qresync = number == 3
                players.append(Player(client, seed * 10 + number, qresync=qresync))
            for player in players:
                await player.begin()
            rng = random.Random(seed)
            await asyncio.gather(
                *(player.play(60) for player in players), from_elsewhere(host, rng)
            )
            await check(host, players)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_clients_that_keep_modseqs(tmp_path: pathlib.Path, seed: int) -> None:
    async def main() -> None:
        async with imap_host(tmp_path) as host:
            clients = [await host.client() for _ in range(5)]
            for _ in range(12):
                await clients[0].append("INBOX", MESSAGE)
            first, second, *others = clients
            swappers = [Swapper(each, seed * 10 + i) for i, each in enumerate(others)]
            returner = Returner(host, first, seed)
            players = [returner, *swappers, Player(second, seed, qresync=False)]
            for player in players:
                await player.begin()
            rng = random.Random(seed)
            await asyncio.gather(
                *(player.play(60) for player in players), from_elsewhere(host, rng)
            )
            await check(host, players)
            won = [each for swapper in swappers for each in swapper.won]
            assert len(won) == len(set(won)) > 0, "two replaced the same flags"
            assert returner.returned

    asyncio.run(main())


async def check(host: ImapHost, players: list[Player]) -> None:
    access = await host.host.account(USER)
    boxes = (await host.host.mailboxes.list(access)).mailboxes
    view = await host.host.messages.view(access, boxes[0].mailbox_id)
    fresh = Player(await host.client(), 0, qresync=False)
    await fresh.begin()
    assert fresh.uids == list(view.uids)
    for player in players:
        await player.run("NOOP", expunge=True)
        for uid in filter(None, player.uids):
            assert words(player.flags[uid]) == words(fresh.flags[uid])
        await player.run("UID FETCH 1:* (FLAGS)", expunge=True)
        assert player.uids == fresh.uids
        assert {uid: player.flags[uid] for uid in fresh.uids} == fresh.flags


def words(flags: bytes) -> set[bytes]:
    return set(flags.strip(b"()").split())
