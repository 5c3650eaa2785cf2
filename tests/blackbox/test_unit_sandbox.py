"""What the unit file forbids is nothing that the daemon does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lib import daemon
from tests.lib.clients import Imap, Jmap, Smtp

if TYPE_CHECKING:
    import pathlib

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not all(map(shutil.which, ("strace", "systemd-analyze"))),
        reason="strace or systemd-analyze is not installed",
    ),
]
UNIT = daemon.ROOT / "systemd/mailserverd.service"
ALICE, PASSWORD = "alice@example.test", "sandbox pass"
MESSAGE = b"From: alice@example.test\r\nSubject: one\r\n\r\nin a box\r\n"
# SQLite gives new files to the owner of the database: as root alone, as tests may run.
AS_ROOT = {"fchown"}
CALL = re.compile(r"^\d+ +(\w+)\((.*)", re.MULTILINE)


def values(key: str) -> list[str]:
    """Return what the unit says of a key, in order."""
    pattern = re.compile(rf"^{key}=(.*)$", re.MULTILINE)
    return pattern.findall(UNIT.read_text())


def group(name: str) -> set[str]:
    """Return the system calls of one of systemd's groups, or the call itself."""
    if not name.startswith("@"):
        return {name}
    shown = subprocess.run(
        ["systemd-analyze", "syscall-filter", name],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    inner = [line.strip() for line in shown.splitlines()[1:]]
    members = [member for member in inner if member and not member.startswith("#")]
    return set().union(*map(group, members))


def allowed() -> set[str]:
    """Return the system calls that the unit's filter lets through."""
    found: set[str] = set()
    for value in values("SystemCallFilter"):
        named = set[str]().union(*map(group, value.removeprefix("~").split()))
        found = found - named if value.startswith("~") else found | named
    return found


def use(ours: daemon.Daemon) -> None:
    """Speak every protocol, with TLS and without; reload."""
    with Smtp(ours.port(25)) as smtp:
        smtp.secure()
        assert smtp.message(MESSAGE, ALICE)[0] == 250
    with Smtp(ours.port(465), tls=True) as smtp:
        assert smtp.login(ALICE, PASSWORD)[0] == 235
        assert smtp.message(MESSAGE, ALICE, sender=ALICE)[0] == 250
    ours.command("account", "add", f"bob@example.test:{PASSWORD}")
    os.kill(ours.pid, signal.SIGHUP)
    with Imap(ours.port(143)) as imap:
        imap.secure()
        imap.ok(f'LOGIN {ALICE} "{PASSWORD}"')
        assert len(imap.messages()) == 2
        imap.append(MESSAGE)
    with Imap(ours.port(993), ALICE, PASSWORD, tls=True) as imap:
        imap.ok("SELECT INBOX")
        assert imap.ok("SEARCH TEXT box") == [b"* SEARCH 1 2 3"]
    with Jmap(ours.port(443), ALICE, PASSWORD, tls=True) as jmap:
        assert jmap.ok("Mailbox/get")["list"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_daemon_does_nothing_that_its_unit_forbids(
    tmp_path: pathlib.Path, workers: int
) -> None:
    """The trace of a daemon in use, held against the unit."""
    trace = tmp_path / "trace"
    ours = daemon.make(tmp_path / "ours", f"{ALICE}:{PASSWORD}")
    ours.override(f"[server]\nworkers = {workers}\n")
    try:
        ours.start(wrapper=("strace", "-D", "-f", "-s", "0", "-o", str(trace)))
        use(ours)
    finally:
        ours.stop()
    calls = CALL.findall(trace.read_text())
    names = {name for name, _ in calls} - (AS_ROOT if os.geteuid() == 0 else set())
    assert {"execve", "mmap", "fdatasync", "accept4"} <= names
    assert sorted(names - allowed()) == []
    # Memory that is written and run: call-backs of C libraries.
    both = [text for _, text in calls if "PROT_WRITE|PROT_EXEC" in text]
    assert not (both and values("MemoryDenyWriteExecute") == ["yes"]), both
    families = {text.partition(",")[0] for name, text in calls if name == "socket"}
    sockets = {family for family in families if family.startswith("AF_")}
    assert sockets <= set(" ".join(values("RestrictAddressFamilies")).split())
