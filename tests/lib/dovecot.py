"""A Dovecot of our own on loopback: the peer for IMAP figures and as an LMTP store."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from tests.lib.ports import free_port

if TYPE_CHECKING:
    import pathlib

CONF = """
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = {location}
mail_uid = vmail-test
mail_gid = vmail-test
first_valid_uid = 1
default_internal_user = {internal}
default_login_user = {login}
mail_max_userip_connections = 0
mail_fsync = {fsync}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={home}/mail/%u
}}
namespace inbox {{
  inbox = yes
}}
service imap-login {{
  inet_listener imap {{
    address = 127.0.0.1
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
  chroot =
  client_limit = 2000
}}
service imap {{
  process_limit = 2000
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp}
  }}
  process_limit = 100
}}
service anvil {{
  client_limit = 5000
}}
service auth {{
  client_limit = 8000
}}
service stats {{
  client_limit = 10000
}}
protocol lmtp {{
  postmaster_address = postmaster@example.test
}}
auth_mechanisms = plain login
auth_username_format = %Lu
"""


class Dovecot:
    """One instance; every address logs in with ``password``."""

    def __init__(
        self, home: pathlib.Path, *, password: str = "pw", store: str = "mdbox"
    ) -> None:
        self.home = home
        self.password = password
        self.imap, self.lmtp = free_port(), free_port()
        for name in ("run", "state", "mail"):
            (home / name).mkdir(parents=True, exist_ok=True)
        uid, gid = _ids("dovecot")
        for parent in (home, *home.parents):
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o055)
        subprocess.run(["chown", "-R", f"{uid}:{gid}", str(home / "mail")], check=True)
        text = CONF.format(
            home=home,
            location=f"{store}:~/store",
            internal="dovecot",
            login="dovenull",
            fsync="optimized",
            password=password,
            uid=uid,
            gid=gid,
            imap=self.imap,
            lmtp=self.lmtp,
        ).replace("vmail-test", "dovecot")
        (home / "dovecot.conf").write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start in the foreground, and wait until it greets."""
        self._process = subprocess.Popen(
            ["/usr/sbin/dovecot", "-F", "-c", str(self.home / "dovecot.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.imap), 1) as sock,
            ):
                sock.settimeout(2)
                if sock.recv(4) == b"* OK":
                    return
            time.sleep(0.05)
        raise RuntimeError(f"dovecot: {self.log()}")

    def stop(self) -> None:
        """Stop by pid."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)

    @property
    def pid(self) -> int:
        """The master's pid."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """Return the log."""
        path = self.home / "dovecot.log"
        return path.read_text(errors="replace") if path.exists() else ""


def _ids(user: str) -> tuple[str, str]:
    def one(flag: str) -> str:
        return subprocess.run(
            ["id", flag, user], capture_output=True, text=True, check=True
        ).stdout.strip()

    return one("-u"), one("-g")
