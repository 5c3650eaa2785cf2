"""Processes, figures and messages that all measurements share."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import statistics
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE_TICKS = os.sysconf("SC_CLK_TCK")
WORDS = (
    "the quick report on our meeting about project plans for next week please "
    "find attached figures budget review draft comments thanks regards invoice "
    "delivery schedule customer release server update question answer tomorrow"
).split()


@dataclasses.dataclass
class Figure:
    """One measured figure of one server."""

    name: str
    server: str
    value: float
    unit: str
    note: str = ""


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for one in found:
        for task in pathlib.Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def pss(pid: int, *, alone: bool = False) -> float:
    """Return the proportional set size of a process (alone) or its tree in MB."""
    total = 0
    for one in [pid] if alone else tree(pid):
        try:
            text = pathlib.Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(
            int(line.split()[1])
            for line in text.splitlines()
            if line.startswith("Pss:")
        )
    return total / 1024


def cpu(pids: list[int]) -> float:
    """Return the CPU seconds that processes (and their reaped children) have used."""
    total = 0
    for pid in pids:
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        total += sum(int(f) for f in fields[11:15])
    return total / PAGE_TICKS


def syncs(pid: int, work: Callable[[], None]) -> int:
    """Count fsync and fdatasync calls of a process tree while ``work`` runs."""
    trace = subprocess.Popen(
        ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range,msync"]
        + [arg for one in tree(pid) for arg in ("-p", str(one))],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        work()
    finally:
        trace.terminate()
    _, text = trace.communicate()
    return sum("sync(" in line and "resumed" not in line for line in text.splitlines())


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def messages(count: int, seed: int = 7) -> Iterator[bytes]:
    """Yield messages as people write them: text, html alternatives, attachments."""
    rng = random.Random(seed)
    for number in range(count):
        yield _message(rng, number)


def _text(rng: random.Random, words: int) -> str:
    picked = [rng.choice(WORDS) for _ in range(words)]
    lines = [" ".join(picked[i : i + 12]) for i in range(0, words, 12)]
    return "\r\n".join(lines) + "\r\n"


def _message(rng: random.Random, number: int) -> bytes:
    sender = f"person{rng.randrange(200)}"
    head = (
        f"Received: from mx.example.net (mx.example.net [192.0.2.{number % 250}])\r\n"
        f"\tby mail.example.test with ESMTPS id {number:x};\r\n"
        f"\tMon, 2 Nov 2026 10:{number % 60:02}:00 +0000\r\n"
        f"From: {sender.title()} Example <{sender}@example.net>\r\n"
        f"To: Bob Example <bob@example.test>, list{number % 9}@example.net\r\n"
        f"Subject: {_text(rng, rng.randint(3, 8)).strip()}\r\n"
        f"Date: Mon, 2 Nov 2026 10:{number % 60:02}:{number % 50:02} +0000\r\n"
        f"Message-ID: <{number}.{rng.getrandbits(48):x}@example.net>\r\n"
        "MIME-Version: 1.0\r\n"
    )
    kind = rng.random()
    body = _text(rng, int(rng.lognormvariate(5.5, 0.9)) + 20)
    if kind < 0.35:
        text = f"{head}Content-Type: text/plain; charset=utf-8\r\n\r\n{body}"
        return text.encode()
    mark = f"b{rng.getrandbits(64):x}"
    html = "<html><body><p>" + body.replace("\r\n", "<br>\r\n") + "</p></body></html>"
    parts = [
        f"Content-Type: text/plain; charset=utf-8\r\n\r\n{body}",
        f"Content-Type: text/html; charset=utf-8\r\n\r\n{html}\r\n",
    ]
    kind_name = "alternative"
    if kind > 0.85:
        kind_name = "mixed"
        data = rng.randbytes(rng.randint(20_000, 60_000)).hex()
        lines = "\r\n".join(data[i : i + 76] for i in range(0, len(data), 76))
        parts[1] = (
            "Content-Type: application/pdf; name=report.pdf\r\n"
            "Content-Transfer-Encoding: base64\r\n"
            f"Content-Disposition: attachment; filename=report.pdf\r\n\r\n{lines}\r\n"
        )
    joined = "".join(f"--{mark}\r\n{part}" for part in parts)
    return (
        f"{head}Content-Type: multipart/{kind_name}; boundary={mark}\r\n\r\n"
        f"{joined}--{mark}--\r\n"
    ).encode()
