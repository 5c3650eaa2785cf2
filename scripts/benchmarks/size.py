"""Size: what a mailbox of a million messages costs, measured against one of a thousand.

The data come from ``loadgen``; with ``BENCH_SIZE`` naming a directory they are kept
there and used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks import common, filling, imap, jmap
from scripts.benchmarks.common import Figure
from tests.lib import doors, ports
from tests.lib.daemon import BASES, OFFSETS, Daemon, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ADDRESS, PASSWORD = "big@example.test", "loadgen"
BIG, SMALL = (1_000_000, 300), (1000, 6)  # messages, folders
QUICK = (50_000, 100)
ROUNDS = 41


def instance(
    home: Path, names: list[str], size: tuple[int, int], shards: int
) -> Daemon:
    """Return an instance filled as asked for, made when it is not there yet."""
    base = filling.make_instance(home, shards, ports.free_base(BASES, OFFSETS))
    wanted = filling.Wanted(home, names, *size, 1, PASSWORD)
    asyncio.run(filling.run(wanted))
    return Daemon(home, base)


async def median(work: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    """Return the median milliseconds of ``work``, after three rounds unmeasured."""
    times = []
    for _ in range(rounds + 3):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:]) * 1000


class Session:
    """One client of each kind on an instance."""

    def __init__(self, ours: Daemon) -> None:
        self.ours = ours

    async def figures(self) -> dict[str, float]:
        """Return every figure in milliseconds."""
        port = self.ours.port(143)
        client = await imap.Client.connect(port)
        await login(client)
        found = {}
        started = time.perf_counter()
        count = exists(await answer(client, "SELECT INBOX"))
        found["SELECT, cold"] = (time.perf_counter() - started) * 1000
        found["SELECT, warm"] = await median(lambda: client.command("SELECT INBOX"))
        other = await imap.Client.connect(port)
        await login(other)
        await other.command("SELECT INBOX")
        other.close()
        page = (
            f"FETCH {count - 49}:{count} (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE)"
        )
        found["IMAP FETCH of the last 50"] = await median(lambda: client.command(page))
        signs = iter("+-" * 100)
        found["STORE of one flag"] = await median(
            lambda: client.command(f"STORE {count} {next(signs)}FLAGS (\\Flagged)")
        )
        found["NOOP"] = await median(lambda: client.command("NOOP"))
        found |= await self.jmap()
        found["delivery, LMTP"] = await self.deliver()
        client.close()
        return found

    async def jmap(self) -> dict[str, float]:
        """Return the figures of JMAP."""
        http = await Http.connect(self.ours.port(80))
        inbox = (await http.call("Mailbox/query", filter={"role": "inbox"}))["ids"][0]
        by_date = [{"property": "receivedAt", "isAscending": False}]
        newest = {"sort": by_date, "limit": 50}
        page = {"filter": {"inMailbox": inbox}, **newest, "calculateTotal": True}
        whole = {**page, "collapseThreads": True}
        find = {"accountId": http.account}
        back = {"resultOf": "0", "name": "Email/query", "path": "/ids"}
        get = {**find, "#ids": back, "properties": jmap.PROPERTIES}
        render = [["Email/query", {**find, **whole}, "0"], ["Email/get", get, "1"]]
        state = (await http.call("Email/query", **page))["queryState"]
        email = (await http.call("Email/query", **page))["ids"][0]
        found = {
            "JMAP inbox, query + get 50": await median(lambda: http.ask(render)),
            "Email/query, inbox by date": await median(
                lambda: http.call("Email/query", **page)
            ),
            "Email/query, all mail by date": await median(
                lambda: http.call("Email/query", **newest)
            ),
            "Email/query, all mail by date, with total": await median(
                lambda: http.call("Email/query", **newest, calculateTotal=True), 9
            ),
            "Email/query, all unread by date": await median(
                lambda: http.call(
                    "Email/query", **newest, filter={"notKeyword": "$seen"}
                ),
                9,
            ),
            "Email/query, page at 5,000": await median(
                lambda: http.call("Email/query", **{**page, "position": 5000}), 9
            ),
            "Email/query, collapsed page at 500": await median(
                lambda: http.call("Email/query", **{**whole, "position": 500}), 9
            ),
            "Mailbox/get of all": await median(
                lambda: http.call("Mailbox/get", ids=None), 9
            ),
            "Email/queryChanges": await median(
                lambda: http.call(
                    "Email/queryChanges",
                    **{**page, "sinceQueryState": state, "limit": ...},
                ),
                5,
            ),
        }
        patch = iter([True, None] * 100)
        found["Email/set of one keyword"] = await median(
            lambda: http.call(
                "Email/set", update={email: {"keywords/$flagged": next(patch)}}
            )
        )
        http.close()
        return found

    async def deliver(self) -> float:
        """Return the median time of a delivery by LMTP on an open connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ours.port(24))

        async def reply() -> bytes:
            while (line := await reader.readline())[3:4] == b"-":
                pass
            return line

        await reply()
        writer.write(b"LHLO load.test\r\n")
        await reply()
        source = common.messages(200, seed=11)

        async def one() -> None:
            to = f"RCPT TO:<{ADDRESS}>"
            writer.write(f"MAIL FROM:<a@example.net>\r\n{to}\r\nDATA\r\n".encode())
            for _ in range(3):
                await reply()
            writer.write(next(source) + b".\r\n")
            line = await reply()
            if not line.startswith(b"250"):
                raise RuntimeError(line.decode())

        found = await median(one)
        writer.close()
        return found


class Http:
    """JMAP requests on one kept connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer
        self.account = ""

    @classmethod
    async def connect(cls, port: int) -> Http:
        """Connect and ask for the account's id."""
        made = cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))
        session = json.loads(await made._send("/jmap/session", b""))
        made.account = session["primaryAccounts"]["urn:ietf:params:jmap:mail"]
        return made

    async def _send(self, path: str, body: bytes) -> bytes:
        request = jmap.http(path, body, user=ADDRESS, password=PASSWORD)
        return await jmap.post(self.reader, self.writer, request)

    async def ask(self, calls: list[list[object]]) -> bytes:
        """Make method calls; return the response as it came."""
        using = ["urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail"]
        body = json.dumps({"using": using, "methodCalls": calls}).encode()
        return await self._send("/jmap/api", body)

    async def call(self, name: str, **arguments: object) -> dict:
        """Make one method call and return what it answered."""
        given = {key: value for key, value in arguments.items() if value is not ...}
        answer = await self.ask([[name, {"accountId": self.account, **given}, "0"]])
        said, result, _ = json.loads(answer)["methodResponses"][0]
        if said != name:
            raise RuntimeError(result)
        return result

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()


async def login(client: imap.Client) -> None:
    """Log the account in."""
    await client.command(f'LOGIN {ADDRESS} "{PASSWORD}"')


async def answer(client: imap.Client, command: str) -> bytes:
    """Return the whole answer to a command."""
    client.tag += 1
    tag = b"A%d " % client.tag
    client.writer.write(tag + command.encode() + b"\r\n")
    lines = [await client.reader.readline()]
    while not lines[-1].startswith(tag):
        lines.append(await client.reader.readline())
    return b"".join(lines)


def exists(text: bytes) -> int:
    """Return the number of messages that SELECT told."""
    return int(text.split(b" EXISTS")[0].rsplit(b"* ", 1)[1])


async def folders(ours: Daemon) -> list[str]:
    """Return the names of all mailboxes."""
    client = await imap.Client.connect(ours.port(143))
    await login(client)
    text = (await answer(client, 'LIST "" "*"')).decode()
    client.close()
    lines = [line for line in text.splitlines() if line.startswith("* LIST")]
    return [line.split(' "/" ')[1].strip() for line in lines]


async def look_at_all(ours: Daemon) -> None:
    """Select every mailbox of the account, one after the other."""
    client = await imap.Client.connect(ours.port(143))
    await login(client)
    for name in await folders(ours):
        await client.command(f"EXAMINE {name}")
    client.close()


def memory(ours: Daemon) -> float:
    """Return the daemon's own memory in MB."""
    return common.pss(ours.pid, alone=True)


def measure_one(home: Path, size: tuple[int, int], label: str) -> Iterator[Figure]:
    """Yield the figures of one account."""
    ours = instance(home, [ADDRESS], size, 1)
    with running(ours):
        for name, value in asyncio.run(Session(ours).figures()).items():
            yield Figure(name, label, value, "ms")
    with running(ours):
        asyncio.run(imap_warm(ours))
        before = memory(ours)
        asyncio.run(look_at_all(ours))
        yield Figure("all mailboxes selected", label, memory(ours) - before, "MB PSS")


async def imap_warm(ours: Daemon) -> None:
    """Log in and list once, so that what follows is the views' memory alone."""
    await folders(ours)
    client = await imap.Client.connect(ours.port(143))
    await login(client)
    await client.command("EXAMINE Drafts")
    client.close()


def measure_accounts(home: Path, count: int, label: str) -> Iterator[Figure]:
    """Yield start-up time and idle memory with many accounts."""
    names = filling.addresses_of(ADDRESS, count)
    ours = instance(home, names, (3, 6), 8)
    times = []
    for _ in range(3):
        started = time.monotonic()
        ours.start()
        times.append(time.monotonic() - started)
        time.sleep(5)
        used = common.pss(ours.pid)
        ours.stop()
    yield Figure(
        "start to listening, many accounts", label, statistics.median(times), "s"
    )
    yield Figure("idle after 5 s, many accounts", label, used, "MB PSS")


def measure_doors(home: Path, size: int) -> Iterator[Figure]:
    """Yield by how much the daemon's memory rises for one large message."""
    ours = instance(home, [ADDRESS], (1, 6), 1)
    with running(ours):
        for door in list(doors.DOORS)[:6]:  # what is loaded once does not count
            doors.through(ours, door, 300_000)
        for door in doors.DOORS:
            rise = doors.through(ours, door, size)
            yield Figure(
                f"memory for {size / 1e6:.0f} MB, {door}", "mailserverd", rise, "MiB"
            )
        peak = doors.Peak(ours.pid)
        peak.reset()
        asyncio.run(doors.append(ours, 1_000_000, size // 25_000))
        yield Figure(
            "memory for much more by APPEND", "mailserverd", peak.rise(), "MiB"
        )


def measure(*, quick: bool) -> Iterator[Figure]:
    """Yield all figures: the big account is "mailserverd", the small one the peer."""
    kept = os.environ.get("BENCH_SIZE")
    with contextlib.ExitStack() as stack:
        base = Path(
            kept
            or stack.enter_context(
                tempfile.TemporaryDirectory(dir="/tmp", prefix="bench-size-")
            )
        )
        big = QUICK if quick else BIG
        yield from measure_one(base / "small", SMALL, "1,000 messages")
        yield from measure_one(base / f"big-{big[0]}", big, "mailserverd")
        yield from measure_doors(base / "doors", 5_000_000 if quick else 49_900_000)
        yield from measure_accounts(base / "accounts-10", 10, "10 accounts")
        many = 1000 if quick else 10_000
        yield from measure_accounts(base / f"accounts-{many}", many, "mailserverd")
