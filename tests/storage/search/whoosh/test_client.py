"""The worker processes: started on demand, ended when idle, replaced when killed."""

import asyncio
import contextlib
import os
import pathlib
import subprocess
import sys
import time

import pytest

from mailserverd.core.errors import Kind, MailError
from storage.search.whoosh import client as client_module
from storage.search.whoosh.client import WhooshSearch
from storage.search.whoosh.wire import (
    PREFIX,
    decode,
    decode_query,
    encode,
    encode_query,
    lengths,
)
from storage.text import And, Not, Or, Term, pack, parse
from tests.lib.waiting import until

ROOT = pathlib.Path(__file__).parents[4]
MAIL = pack("subject: fox", "text")


@contextlib.asynccontextmanager
async def opened(place, idle=30.0):
    index = WhooshSearch(str(place), idle)
    try:
        yield index
    finally:
        await index.close()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_start_when_needed_and_end_with_the_facade(tmp_path):
    async def run():
        async with opened(tmp_path) as index:
            assert index.indexer.pid == index.searcher.pid == 0
            await index.update(1, [(7, MAIL)], [], 0, 1)
            assert index.indexer.pid
            assert index.searcher.pid == 0
            assert list((await index.search(1, parse("text", "fox"))).ids) == [7]
            pids = index.indexer.pid, index.searcher.pid
        assert not any(map(is_alive, pids))

    asyncio.run(run())


def test_a_worker_that_idles_gives_its_memory_back_and_is_started_again(tmp_path):
    async def run():
        async with opened(tmp_path, idle=0.1) as index:
            await index.update(1, [(7, MAIL)], [], 0, 1)
            process = index.indexer._process
            await until(lambda: process.poll() is not None)
            assert process.returncode == 0
            await index.update(1, [(8, MAIL)], [], 1, 2)
            assert index.indexer.pid != process.pid

    asyncio.run(run())


def test_a_worker_that_was_killed_is_replaced_and_nothing_done_twice(tmp_path):
    async def run():
        async with opened(tmp_path) as index:
            await index.update(1, [(7, MAIL)], [], 0, 1)
            for round_ in range(1, 4):
                index.indexer._process.kill()
                new = (7 + round_, MAIL)
                try:
                    await index.update(1, [new], [], round_, round_ + 1)
                except MailError as e:  # it was done before the worker was replaced
                    assert e.kind is Kind.CONFLICT
            ids = list((await index.search(1, parse("text", "fox"))).ids)
            assert ids == [7, 8, 9, 10]

    asyncio.run(run())


def test_a_worker_that_cannot_start_is_a_temporary_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def run():
        async with opened(tmp_path) as index:
            for _ in range(3):
                with pytest.raises(MailError) as caught:
                    await index.search(1, parse("text", "fox"))
                assert caught.value.kind is Kind.UNAVAILABLE

    asyncio.run(run())


@pytest.mark.parametrize("length", [r"\000\000\000\002", r"\000\000\000\011"])
def test_a_worker_that_talks_nonsense_is_replaced(tmp_path, monkeypatch, length):
    """Its head is said to be longer than the frame, or is no JSON."""
    program = tmp_path / "nonsense"
    frame = rf"\000\000\000\003{length}nonsense!"
    program.write_text(f"#!/bin/sh\nprintf '{frame}' >&0\nexec sleep 60\n")
    program.chmod(0o700)

    async def run():
        async with opened(tmp_path / "index") as index:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "executable", str(program))
                with pytest.raises(MailError) as caught:
                    await index.search(1, parse("text", "fox"))
            assert caught.value.kind is Kind.UNAVAILABLE
            assert index.searcher.pid == 0
            await until_answered(index)

    asyncio.run(run())


def test_a_search_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "_SEARCH_LIMIT", 0.2)

    async def run():
        async with opened(tmp_path) as index:
            await index.update(1, [(7, MAIL)], [], 0, 1)
            await until_answered(index)
            process = index.searcher._process
            os.kill(process.pid, 19)  # SIGSTOP
            with pytest.raises(MailError) as caught:
                await index.search(1, parse("text", "fox"))
            assert caught.value.kind is Kind.UNAVAILABLE
            assert process.returncode == -9
            await until_answered(index)

    asyncio.run(run())


async def until_answered(index):
    """Search until the (slowly starting) worker answers within the limit."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(MailError):
                return await index.search(1, parse("text", "fox"))
            await asyncio.sleep(0.05)
            client_module._SEARCH_LIMIT = 5.0


def test_a_caller_that_goes_away_does_not_mix_up_answers(tmp_path):
    async def run():
        async with opened(tmp_path) as index:
            await index.update(1, [(7, MAIL)], [], 0, 1)
            await index.update(2, [(9, MAIL)], [], 0, 1)
            for delay in (0, 0.001, 0.003, 0.01):
                task = asyncio.ensure_future(index.search(1, parse("text", "fox")))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert list((await index.search(2, parse("text", "fox"))).ids) == [9]

    asyncio.run(run())


def test_workers_end_when_the_daemon_is_killed(tmp_path):
    code = (
        "import asyncio, sys; from storage.search.whoosh.client import WhooshSearch\n"
        "from storage.text import parse\n"
        "async def main():\n"
        "    index = WhooshSearch(sys.argv[1]); await index.watermark(1)\n"
        "    await index.search(1, parse('text', 'fox'))\n"
        "    print(index.indexer.pid, index.searcher.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    ) as daemon:
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        daemon.kill()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) and not is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_zombie(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "Z"
    return True


def test_the_daemon_never_imports_whoosh():
    code = (
        "import sys, storage.search.whoosh.client\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'whoosh']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_worker_is_small():
    code = (
        "import sys, storage.search.whoosh.worker\n"
        "assert not {'asyncio', 'structlog', 'sqlalchemy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_damage_in_the_worker_is_logged_by_the_daemon(tmp_path, capsys):
    async def run():
        async with opened(tmp_path) as index:
            await index.update(1, [(7, b"not packed")], [], 0, 1)

    asyncio.run(run())
    assert "text-damaged" in capsys.readouterr().out


# --- the wire ---


@pytest.mark.parametrize(
    "query",
    [
        Term("from", ("a", "日本"), phrase=True),
        And((Or(()), Not(Term("text", ("x",), prefix=True)))),
    ],
)
def test_queries_travel(query):
    assert decode_query(encode_query(query)) == query


@pytest.mark.parametrize("value", [[], ["term", "a"], ["and", [["xor", []]]], [1]])
def test_what_is_no_query_is_refused(value):
    with pytest.raises(MailError):
        decode_query(value)


def test_frames_travel():
    frame = encode({"op": "x", "n": 5}, [b"", b"\0abc", b"d"])
    head, length = lengths(frame[: PREFIX.size])
    assert length == len(frame) - PREFIX.size
    assert decode(frame[PREFIX.size :], head) == (
        {"op": "x", "n": 5},
        [b"", b"\0abc", b"d"],
    )


def test_a_frame_of_nonsense_is_refused():
    with pytest.raises(MailError):
        lengths(PREFIX.pack(10, 5))
    with pytest.raises(MailError):
        lengths(PREFIX.pack(10, 1 << 31))
