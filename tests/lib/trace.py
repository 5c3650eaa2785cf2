"""A daemon's system calls as strace saw them: what was written, synced and sent, when.

Time is the number of a line in the trace.  strace stops a thread at the entry and at
the exit of every call, and writes a line before it lets the thread go on; so when one
thing was caused by another, their lines are in that order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.daemon import Daemon

CALLS = (
    "open,creat,openat,openat2,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,"
    "rename,renameat,renameat2,unlink,unlinkat,truncate,ftruncate,fallocate,"
    "write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,splice,"
    "copy_file_range,mmap,fsync,fdatasync,sync,syncfs,sync_file_range,msync"
)
END_LIMIT = 20.0  # seconds in which strace writes its last line
_HEX = rb"(?:\\x[0-9a-f]{2})"
_LINE = re.compile(rb"(\d+) +(<\.\.\. \w+ resumed>)?(.*)", re.DOTALL)
_CALL = re.compile(rb"(\w+)\((.*)\) += (-?\d+|\?|0x[0-9a-f]+)(.*)", re.DOTALL)
_FILE = re.compile(rb"\d+<(" + _HEX + rb"+)>(\(deleted\))?")
_SOCKET = re.compile(rb"\d+<TCP(?:v6)?:\[[^\]]*:(\d+)->[^\]]*:(\d+)\]>")
_UNFINISHED = b" <unfinished ...>"
_VECTORS = {"writev", "pwritev", "pwritev2"}
_OPENS = {"open", "openat", "creat", "openat2"}
_BY_PATH = {"mkdir", "rename", "unlink", "rmdir", "truncate"}


def wrapper(output: pathlib.Path, *how: str) -> tuple[str, ...]:
    """Return the command that goes before the one to be traced."""
    show = ("-f", "--seccomp-bpf", "-yy", "-xx", "-v", "-s", "200000000")
    what = ("-e", "signal=none", "-e", f"trace={CALLS}")
    return ("strace", *how, *show, *what, "-o", str(output))


@contextlib.contextmanager
def running(daemon: Daemon, output: pathlib.Path) -> Iterator[None]:
    """Run a daemon under strace; it is stopped, and the trace whole, at the end.

    With ``-D`` the process that was started is the daemon, and strace one of its
    descendants: signals and exit status are the daemon's own.
    """
    daemon.start(wrapper=wrapper(output, "-D"))
    with ended(daemon):
        yield


@contextlib.contextmanager
def ended(daemon: Daemon) -> Iterator[None]:
    """Stop a traced daemon at the end, and wait until strace has written its last."""
    status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
    tracer = status.partition("TracerPid:")[2].split()[0]
    try:
        yield
    finally:
        if daemon.process is not None:
            daemon.stop()
        _wait(tracer)


def _wait(pid: str) -> None:
    """Wait for the end of a process that is not our child."""
    until = time.monotonic() + END_LIMIT
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text():
            if time.monotonic() > until:
                raise TimeoutError(f"strace, {pid}, does not end")
            time.sleep(0.02)


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One system call.  ``path`` is what it worked on (a file by its path, or "")."""

    entry: int
    exit: int
    name: str
    path: str = ""
    new: str = ""  # of rename
    offset: int = -1  # of writes; the length of ftruncate
    data: bytes = b""  # written or sent
    flags: str = ""  # of openat
    ports: tuple[int, int] = (0, 0)  # of a TCP socket: ours, the peer's


def calls(path: pathlib.Path, start: int = 0) -> Iterator[Call]:
    """Yield the calls that succeeded, in the order of their exits.

    Lines are counted from ``start``, so that several traces make one history.
    """
    begun: dict[bytes, tuple[int, bytes]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start):
            match = _LINE.match(line.rstrip(b"\n"))
            if match is None or match[3][:4] in {b"+++ ", b"--- "}:
                continue
            pid, resumed, text = match.groups()
            if text.endswith(_UNFINISHED):
                begun[pid] = number, text.removesuffix(_UNFINISHED)
                continue
            entry = number
            if resumed:
                entry, head = begun.pop(pid)
                text = head + text
            call = _call(entry, number, text)
            if call is not None:
                yield call


def length(path: pathlib.Path) -> int:
    """Return the number of lines."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _call(entry: int, exit_: int, text: bytes) -> Call | None:
    match = _CALL.match(text)
    assert match is not None, text[:200]
    name, args, result = match[1].decode(), match[2], match[3]
    if result == b"?" or result.startswith(b"-"):
        return None
    if socket := _SOCKET.match(args):
        data = _written(name, args, int(result))
        ports = int(socket[1]), int(socket[2])
        return Call(entry, exit_, name, data=data, ports=ports)
    return _file_call(Call(entry, exit_, name), args, result, match[4])


def _file_call(call: Call, args: bytes, result: bytes, rest: bytes) -> Call | None:
    """Return a call on files; None for those on anything else."""
    name = call.name
    if name in _OPENS:
        opened = _FILE.match(result + rest)
        flags = args.rpartition(b'", ')[2].decode()
        return _on(opened, call, flags=flags)
    if name.removesuffix("2").removesuffix("at") in _BY_PATH:
        paths = [_absolute(*pair) for pair in _paths(args)]
        size = int(args.rpartition(b", ")[2]) if name == "truncate" else -1
        return dataclasses.replace(call, path=paths[0], new=paths[-1], offset=size)
    if name == "mmap":
        flags = args.decode("ascii", "replace")
        return _on(_FILE.search(args), call, flags=flags)
    target = _FILE.match(args)
    if name == "ftruncate":
        return _on(target, call, offset=int(args.rpartition(b", ")[2]))
    if target is not None and "write" in name:
        data = _written(name, args, int(result))
        return _on(target, call, data=data, offset=_offset(name, args))
    return _on(target, call)


def _on(target: re.Match[bytes] | None, call: Call, **more: Any) -> Call | None:
    """Return the call with its file's path; None when there is none by that name."""
    if target is None or target[2]:
        return None
    return dataclasses.replace(call, path=_text(target[1]), **more)


def _offset(name: str, args: bytes) -> int:
    """Return where a positioned write began; -1 for others."""
    if not name.startswith("p"):
        return -1
    numbers = args[-60:].split(b", ")
    return int(numbers[-2] if name == "pwritev2" else numbers[-1])


def _written(name: str, args: bytes, result: int) -> bytes:
    """Return the octets that a call wrote or sent: of its strings, what it took."""
    if name not in {"write", "pwrite64", "sendto", "sendmsg", *_VECTORS}:
        return b""
    data = b"".join(map(_bytes, args.split(b'"')[1::2]))
    if name != "sendmsg":
        assert len(data) >= result, (name, len(data), result)
    return data[:result]


def _bytes(text: bytes) -> bytes:
    return bytes.fromhex(text.replace(b"\\x", b"").decode())


def _text(path: bytes) -> str:
    return _bytes(path).decode()


def _paths(args: bytes) -> list[tuple[str, str]]:
    """Return (directory it is relative to, path) of each path in the arguments."""
    parts = args.split(b'"')
    found = []
    for before, path in zip(parts[::2], parts[1::2], strict=False):
        base = re.search(rb"<(" + _HEX + rb"+)>, $", before)
        found.append((_text(base[1]) if base else "", _text(path)))
    return found


def _absolute(base: str, path: str) -> str:
    return path if path.startswith("/") else f"{base}/{path}"


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """What the daemon sent on one connection, and when each octet left."""

    data: bytes
    pieces: tuple[tuple[int, int], ...]  # end in ``data``, entry

    def when(self, text: bytes) -> int:
        """Return when the call began that sent the last octet of ``text``."""
        at = self.data.find(text)
        assert at >= 0, f"{text!r} was not sent: {self.data[-300:]!r}"
        end = at + len(text)
        return next(entry for piece, entry in self.pieces if piece >= end)

    def last_before(self, moment: int) -> int:
        """Return when the last call before a moment began to send.

        It need not be over: what the peer does next may come first.
        """
        return max(entry for _, entry in self.pieces if entry < moment)


def sent(all_calls: list[Call]) -> dict[tuple[int, int], Sent]:
    """Return what was sent by (our port, the peer's port)."""
    data: dict[tuple[int, int], bytearray] = {}
    pieces: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for call in all_calls:
        if call.ports != (0, 0) and call.data:
            buffer = data.setdefault(call.ports, bytearray())
            buffer += call.data
            pieces.setdefault(call.ports, []).append((len(buffer), call.entry))
    return {ports: Sent(bytes(b), tuple(pieces[ports])) for ports, b in data.items()}
