"""A Postfix of our own on loopback: real MTA peer, started and stopped by its pid.

Everything lies under one directory of root's (Postfix insists on its own users for
the queue).  ``smtpd`` listens on a free port; names resolve as the caller configures.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from tests.lib.ports import free_port

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

MASTER = """
{address}:{port} inet n - n - - smtpd
pickup    unix n - n 1 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 1 1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
flush     unix n - n 1000? 0 flush
proxymap  unix - - n - - proxymap
smtp      unix - - n - - smtp
relay     unix - - n - - smtp
showq     unix n - n - - showq
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
local     unix - n n - - local
virtual   unix - n n - - virtual
lmtp      unix - - n - - lmtp
anvil     unix - - n - 1 anvil
scache    unix - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""
MAIN = """
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {home}/log/mail.log
maillog_file_prefixes = {home}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
smtputf8_enable = yes
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_rate_limit = 0
smtpd_client_connection_count_limit = 0
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
"""


def with_resolver(file: pathlib.Path, nameserver: str) -> list[str]:
    """Return a command prefix (for root) under which names resolve at a server."""
    file.write_text(f"nameserver {nameserver}\noptions timeout:1\n")
    script = f'mount --bind {file} /etc/resolv.conf && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh"]


class Postfix:
    """One instance; ``settings`` are main.cf parameters, one a line."""

    def __init__(
        self,
        home: pathlib.Path,
        settings: str,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        nameserver: str = "",
    ) -> None:
        self.home = home
        self.address = address
        self.port = port or free_port()
        self._nameserver = nameserver
        for name in ("queue", "data", "log", "etc"):
            (home / name).mkdir(parents=True, exist_ok=True)
        for parent in (home, *home.parents):
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o055)
        shutil.chown(home / "data", "postfix")
        etc = home / "etc"
        (etc / "master.cf").write_text(MASTER.format(address=address, port=self.port))
        (etc / "main.cf").write_text(MAIN.format(home=home) + settings)
        shutil.copy("/etc/postfix/dynamicmaps.cf", etc)

    def _resolver(self) -> list[str]:
        if not self._nameserver:
            return []
        return with_resolver(self.home / "resolv.conf", self._nameserver)

    def _postfix(
        self, *args: str, wrapper: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*wrapper, "/usr/sbin/postfix", "-c", str(self.home / "etc"), *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def start(self) -> None:
        """Start, and wait until it greets."""
        done = self._postfix("start", wrapper=self._resolver())
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.address, self.port), 1) as sock,
            ):
                sock.settimeout(2)
                if sock.recv(4) == b"220 ":
                    return
            time.sleep(0.05)
        raise RuntimeError(f"postfix: {done.stdout}{done.stderr}{self.log()}")

    def stop(self) -> None:
        """Stop the master by its own pid file."""
        self._postfix("stop")

    def flush(self) -> None:
        """Try everything in the queue now."""
        self._postfix("flush")

    def queue(self) -> str:
        """Return what ``postqueue -p`` prints."""
        return subprocess.run(
            ["/usr/sbin/postqueue", "-c", str(self.home / "etc"), "-p"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        ).stdout

    def log(self) -> str:
        """Return the mail log."""
        path = self.home / "log/mail.log"
        return path.read_text(errors="replace") if path.exists() else ""
