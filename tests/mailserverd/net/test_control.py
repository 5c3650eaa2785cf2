"""The control socket: requests, refusals, and what is a fault of our own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from mailserverd.core.errors import Kind, MailError
from mailserverd.net import control

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Callable


async def handler(
    command: str, args: dict[str, Any], progress: Callable[[dict[str, Any]], None]
) -> Any:
    if command == "refuse":
        raise MailError(Kind.NOT_FOUND, "no such thing")
    if command == "fail":
        raise {"KeyError": KeyError, "ValueError": ValueError}[args["how"]]("secret")
    progress({"done": 1})
    return args


@contextlib.asynccontextmanager
async def served(path: pathlib.Path) -> AsyncIterator[pathlib.Path]:
    place = path / "control.sock"
    server = await control.serve(control.bind(place), handler)
    async with asyncio.timeout(10), server:
        yield place


async def ask(place: pathlib.Path, line: bytes) -> Any:
    reader, writer = await asyncio.open_unix_connection(str(place))
    writer.write(line + b"\n")
    answer = await reader.readline()
    writer.close()
    return json.loads(answer)


def test_a_command_has_progress_and_a_result(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as place:
            seen: list[dict[str, Any]] = []
            assert await control.call(place, "x", {"a": 1}, seen.append) == {"a": 1}
            assert seen == [{"done": 1}]
            with pytest.raises(MailError, match="NOT_FOUND: no such thing"):
                await control.call(place, "refuse", {}, seen.append)

    asyncio.run(main())


def test_a_path_longer_than_a_socket_s_may_be(tmp_path: pathlib.Path) -> None:
    """A daemon with a deep data_dir did not start, and no command worked."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()

    async def main() -> None:
        for _ in range(2):  # the second replaces a stale socket
            async with served(deep) as place:
                assert place.is_socket()
                assert place.stat().st_mode & 0o777 == 0o600
                assert await control.call(place, "x", {}, lambda _: None) == {}
        with pytest.raises(ConnectionRefusedError):
            await control.call(place, "x", {}, lambda _: None)
        with pytest.raises(FileNotFoundError):
            await control.call(deep / "lost" / "x.sock", "x", {}, lambda _: None)

    asyncio.run(main())


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"1", b"{}", b'{"command": "x", "args": 1}']
)
def test_a_malformed_request_is_refused(tmp_path: pathlib.Path, line: bytes) -> None:
    async def main() -> None:
        async with served(tmp_path) as place:
            error = (await ask(place, line))["error"]
            assert error == {"kind": "INVALID", "text": "malformed request"}

    asyncio.run(main())


@pytest.mark.parametrize("how", ["KeyError", "ValueError"])
def test_a_fault_of_ours_is_logged_and_not_the_client_s(
    tmp_path: pathlib.Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with served(tmp_path) as place:
            line = json.dumps({"command": "fail", "args": {"how": how}})
            error = (await ask(place, line.encode()))["error"]
            assert error == {"kind": "INTERNAL", "text": "see the daemon's log"}

    asyncio.run(main())
    assert f"{how}: " in "".join(capsys.readouterr())


@pytest.mark.parametrize("half", [False, True])
def test_a_command_ends_when_its_client_was_interrupted(
    tmp_path: pathlib.Path, half: bool
) -> None:
    """Not so when it only has nothing more to say; on the loop that the daemon has."""
    ended = asyncio.Event()
    faults: list[dict[str, Any]] = []

    async def endless(
        _: str, __: dict[str, Any], progress: Callable[[dict[str, Any]], None]
    ) -> Any:
        try:
            for count in range(10_000 if not half else 50):
                progress({"done": count})
                await asyncio.sleep(0.001)
        finally:
            ended.set()
        return "done"

    async def main() -> None:
        place = tmp_path / "control.sock"
        asyncio.get_running_loop().set_exception_handler(lambda _, f: faults.append(f))
        server = await control.serve(control.bind(place), endless)
        async with asyncio.timeout(5), server:
            reader, writer = await asyncio.open_unix_connection(str(place))
            writer.write(b'{"command": "x"}\n')
            await reader.readline()
            if half:
                writer.write_eof()
                lines = [json.loads(line) async for line in reader]
                assert lines[-1] == {"result": "done"}
            writer.close()
            await ended.wait()
            if sessions := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(sessions)
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert faults == []
