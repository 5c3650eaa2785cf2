"""Calls between processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pathlib
import pickle
import socket
import stat
import subprocess
import sys

import pytest

from mailserverd.core import ipc, sockets
from mailserverd.core.errors import Kind, MailError
from tests.lib.sharing import run_dir
from tests.lib.waiting import until

LIMIT = 20.0


async def end(server, *peers):
    """Close both ends."""
    for peer in peers:
        peer.close()
    server.close()
    await until(lambda: not server.peers and all(peer.closed for peer in peers))


def double(_peer, value):
    return value * 2


async def slowly(_peer, value):
    await asyncio.sleep(0.001 * (value % 3))
    return value


def refuse(_peer):
    raise MailError(Kind.OVER_QUOTA, "it is full", limit=7)


def fault(_peer):
    raise ZeroDivisionError


async def fault_later(_peer):
    raise ZeroDivisionError


def unsendable(_peer):
    return lambda: None


class Wait:
    """A method that never answers; ``running`` of its calls are under way."""

    def __init__(self):
        self.running = 0

    async def __call__(self, _peer):
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1


SERVICE = {
    "double": double,
    "slowly": slowly,
    "refuse": refuse,
    "fault": fault,
    "fault-later": fault_later,
    "unsendable": unsendable,
}


def scenario(work, service=None):
    """Run work with a peer's two ends: (server, the client's end)."""

    async def run():
        with run_dir() as place:
            path = place / "test.sock"
            server = await ipc.listen(path, service or SERVICE)
            peer = await ipc.connect(path)
            try:
                async with asyncio.timeout(LIMIT):
                    await until(lambda: server.peers)
                    await work(server, peer)
            finally:
                await end(server, peer)

    asyncio.run(run())


def test_answers_find_their_calls():
    async def work(_server, peer):
        found = await asyncio.gather(*(peer.call("slowly", n) for n in range(1000)))
        assert found == list(range(1000))
        assert await peer.call("double", "ab") == "abab"

    scenario(work)


def test_calls_of_one_turn_travel_together(monkeypatch):
    frames = []
    loads = pickle.loads
    monkeypatch.setattr(
        ipc.pickle, "loads", lambda data: frames.append(1) or loads(data)
    )

    async def work(_server, peer):
        await asyncio.gather(*(peer.call("double", n) for n in range(640)))
        assert len(frames) <= 2 * 640 / ipc.PER_FRAME + 2

    scenario(work)


def test_errors_travel_with_kind_text_and_details_and_faults_do_not():
    async def work(_server, peer):
        with pytest.raises(MailError) as caught:
            await peer.call("refuse")
        error = caught.value
        assert (error.kind, error.text) == (Kind.OVER_QUOTA, "it is full")
        assert error.details == {"limit": 7}
        for method in ("fault", "fault-later", "unsendable", "unknown"):
            with pytest.raises(MailError) as caught:
                await peer.call(method)
            assert caught.value.kind is Kind.INTERNAL
            assert caught.value.text == Kind.INTERNAL.value

    scenario(work)


def test_what_cannot_be_sent_fails_alone():
    async def work(_server, peer):
        found = await asyncio.gather(
            peer.call("double", 1),
            peer.call("double", lambda: None),
            peer.call("double", 3),
            return_exceptions=True,
        )
        assert found[::2] == [2, 6]
        assert found[1].kind is Kind.INTERNAL

    scenario(work)


def test_a_large_message_arrives_and_a_larger_one_is_refused(monkeypatch):
    monkeypatch.setattr(ipc, "MAX_FRAME", 5_000_000)

    async def work(_server, peer):
        large = os.urandom(2_000_000)
        both = await asyncio.gather(peer.call("double", large), peer.call("double", 1))
        assert both == [large * 2, 2]
        with pytest.raises(MailError) as caught:
            await peer.call("double", bytes(6_000_000))
        assert caught.value.kind is Kind.TOO_LARGE
        with pytest.raises(MailError) as caught:  # the answer is too large
            await peer.call("double", bytes(4_000_000))
        assert caught.value.kind is Kind.TOO_LARGE
        assert await peer.call("double", 4) == 8

    scenario(work)


def test_both_ends_call_and_tell():
    heard = []

    async def ask_back(peer, value):
        return await peer.call("more", value) + 1

    async def run():
        with run_dir() as place:
            service = {"ask": ask_back, "note": lambda _peer, what: heard.append(what)}
            server = await ipc.listen(place / "s", service)
            peer = await ipc.connect(place / "s", {"more": lambda _peer, n: n * 10})
            peer.tell("note", "first")
            assert await peer.call("ask", 4) == 41
            assert heard == ["first"]
            await end(server, peer)

    asyncio.run(run())


def test_a_caller_that_is_cancelled_cancels_the_handler():
    wait = Wait()

    async def work(server, peer):
        task = asyncio.create_task(peer.call("wait"))
        await until(lambda: wait.running)
        task.cancel()
        await until(lambda: not wait.running)
        assert task.cancelled()
        assert next(iter(server.peers)).under_way == 0
        assert await peer.call("double", 1) == 2

    scenario(work, {**SERVICE, "wait": wait})


def test_a_lost_connection_fails_what_waits_and_cancels_what_runs():
    wait = Wait()

    async def work(server, peer):
        waiting = asyncio.create_task(peer.call("wait"))
        await until(lambda: wait.running)
        server.close()
        with pytest.raises(MailError) as caught:
            await waiting
        assert caught.value.kind is Kind.UNAVAILABLE
        await until(lambda: not wait.running)
        with pytest.raises(MailError):
            await peer.call("wait")
        peer.tell("wait")

    scenario(work, {"wait": wait})


def test_what_was_said_before_closing_arrives():
    heard = []

    async def work(server, peer):
        for n in range(1000):
            peer.tell("note", n, bytes(1000))
        peer.close()
        await until(lambda: not server.peers)
        assert heard == list(range(1000))

    scenario(work, {"note": lambda _peer, n, _body: heard.append(n)})


def test_a_peer_with_too_many_calls_under_way_is_not_read(monkeypatch):
    monkeypatch.setattr(ipc, "MAX_UNDER_WAY", 10)
    most, go = 0, asyncio.Event()

    async def wait(peer, _body):
        nonlocal most
        most = max(most, peer.under_way)
        await go.wait()

    async def work(_server, peer):
        calls = []
        for _ in range(50):  # each in a frame of its own, too large for one read
            calls.append(asyncio.create_task(peer.call("wait", bytes(300_000))))
            await asyncio.sleep(0)
        await until(lambda: most > 10)
        assert most < 20
        go.set()
        await asyncio.gather(*calls)

    scenario(work, {"wait": wait})


def test_a_peer_that_does_not_read_is_not_written_to_without_end():
    async def run():
        with run_dir() as place:
            server = await ipc.listen(place / "s", SERVICE)
            deaf = socket.socket(socket.AF_UNIX)
            deaf.connect(str(place / "s"))
            await until(lambda: server.peers)
            (peer,) = server.peers
            for _ in range(1000):
                peer.tell("note", bytes(100_000))
                await asyncio.sleep(0)
            assert not peer.writable
            assert peer._transport.get_write_buffer_size() < 20 << 20
            resumed = []
            peer.resumed = lambda: resumed.append(1)
            deaf.setblocking(False)
            while not resumed:
                with contextlib.suppress(BlockingIOError):
                    deaf.recv(1 << 20)
                await asyncio.sleep(0)
            deaf.close()
            await end(server)

    asyncio.run(run())


@pytest.mark.parametrize(
    "octets",
    [
        b"\xff\xff\xff\xff",
        b"\x04\x00\x00\x00junk",
        ipc.HEAD.pack(4) + pickle.dumps(7, 5)[:4],
        b"GET / HTTP/1.1\r\n\r\n" * 100,
    ],
)
def test_who_speaks_something_else_is_cut_off(octets):
    async def work(server, peer):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(str(server.path))
        await until(lambda: len(server.peers) == 2)
        stranger.sendall(octets)
        await until(lambda: len(server.peers) == 1)
        stranger.close()
        assert await peer.call("double", 1) == 2

    scenario(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_not_listened_to(tmp_path):
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.settimeout(10); sys.exit(s.recv(1) != b'')"
    )

    async def work(server, peer):
        server.path.parent.chmod(0o755)
        server.path.chmod(0o666)
        program = [sys.executable, "-c", script, str(server.path)]
        as_nobody = ["setpriv", "--reuid", "65534", "--clear-groups", "--", *program]
        done = await asyncio.to_thread(
            subprocess.run, as_nobody, timeout=20, check=False
        )
        assert done.returncode == 0
        assert len(server.peers) == 1
        assert await peer.call("double", 1) == 2

    scenario(work)


def test_sockets_are_ours_alone_and_stale_ones_are_replaced():
    async def run():
        with run_dir() as place:
            path = place / "s"
            dead = socket.socket(socket.AF_UNIX)
            dead.bind(str(path))
            dead.close()
            server = await ipc.listen(path, SERVICE)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            peer = await ipc.connect(path)
            assert await peer.call("double", 1) == 2
            server.close_door()
            assert not path.exists()
            assert await peer.call("double", 2) == 4  # who came stays
            with pytest.raises(OSError):
                await ipc.connect(path)
            await end(server, peer)

    asyncio.run(run())


def test_a_long_path_is_reached_by_its_directory(tmp_path):
    async def run():
        deep = tmp_path / ("d" * 120)
        sockets.private_directory(deep)
        server = await ipc.listen(deep / "s", SERVICE)
        peer = await ipc.connect(deep / "s")
        assert await peer.call("double", 1) == 2
        peer.close()
        server.close()
        assert list(deep.iterdir()) == []

    asyncio.run(run())


def test_the_directory_of_sockets_is_private(tmp_path):
    made = tmp_path / "run"
    made.mkdir(mode=0o755)
    sockets.private_directory(made)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(made)
    file = pathlib.Path(tmp_path / "file")
    file.touch()
    for wrong in (tmp_path / "link", file, file / "below"):
        with pytest.raises(MailError) as caught:
            sockets.private_directory(wrong)
        assert caught.value.kind is Kind.FORBIDDEN


def test_a_link_is_made_again_whenever_it_was_lost():
    async def run():
        with run_dir() as place:
            path, ups, downs = place / "s", [], []
            link = ipc.Link(path, up=ups.append, down=downs.append)
            with pytest.raises(MailError) as caught:
                await link.call("double", 1, wait=0.05)
            assert caught.value.kind is Kind.UNAVAILABLE
            link.tell("double", 1)
            waiting = asyncio.create_task(link.call("double", 1))
            for n in range(1, 4):
                server = await ipc.listen(path, SERVICE)
                assert await waiting == 2
                assert await link.call("double", n) == 2 * n
                assert len(ups) == n
                server.close()
                await until(lambda n=n: len(downs) == n)
                waiting = asyncio.create_task(link.call("double", 1, wait=10))
            waiting.cancel()
            await link.close()
            assert len(downs) == 3

    asyncio.run(run())


def test_a_call_that_is_cancelled_just_as_the_link_is_made_ends():
    """asyncio.wait_for of Python 3.11 would go on with what it waited for."""
    calls, loops = [], []

    def cancel_after(turns, _peer):
        if turns:
            loops[0].call_soon(cancel_after, turns - 1, None)
        else:
            calls[-1].cancel()

    async def never(_peer):
        await asyncio.Event().wait()

    async def run():
        loops.append(asyncio.get_running_loop())
        with run_dir() as place:
            for turns in range(6):
                up = functools.partial(cancel_after, turns)
                link = ipc.Link(place / "s", up=up)
                calls.append(asyncio.create_task(link.call("never", wait=LIMIT)))
                await asyncio.sleep(0)
                server = await ipc.listen(place / "s", {"never": never})
                await asyncio.wait(calls, timeout=LIMIT)
                assert calls[-1].cancelled(), turns
                await link.close()
                server.close()
                await until(lambda server=server: not server.peers)

    asyncio.run(run())
