"""Strangers read, flag, move, search and store mail over IMAP against the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import select
import shutil
import ssl
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from imapclient import IMAPClient

from tests.lib import daemon as daemons
from tests.lib.clients import unverified
from tests.lib.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.daemon import Daemon

HERE = pathlib.Path(__file__).parent
IMAPFLOW = "1.0.160"
PASSWORD = "secret-1234"
NUMBERS = ("one", "two", "three")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    users = ("lib", "mbsync", "neomutt", "imapflow", "offlineimap")
    made = daemons.make(
        tmp_path_factory.mktemp("imap-clients") / "md",
        *(f"{user}@example.test:{PASSWORD}" for user in users),
        domains=("example.test",),
    )
    with daemons.running(made):
        yield made


@contextlib.contextmanager
def client(daemon: Daemon, user: str) -> Iterator[IMAPClient]:
    opened = IMAPClient("127.0.0.1", daemon.port(993), ssl_context=unverified())
    opened.login(f"{user}@example.test", PASSWORD)
    try:
        yield opened
    finally:
        opened.logout()


def fill(daemon: Daemon, user: str) -> None:
    """Put three messages into the inbox."""
    with client(daemon, user) as imap:
        for number in NUMBERS:
            text = f"From: a@example.net\r\nSubject: {number}\r\n\r\ntext {number}\r\n"
            imap.append("INBOX", text.encode())


def subjects(imap: IMAPClient, folder: str) -> dict[bytes, set[bytes]]:
    """Return the flags by subject of what lies in a folder."""
    imap.select_folder(folder, readonly=True)
    found = imap.fetch(imap.search(), ["ENVELOPE", "FLAGS"])
    return {m[b"ENVELOPE"].subject: set(m[b"FLAGS"]) for m in found.values()}


def test_imapclient(daemon: Daemon) -> None:
    fill(daemon, "lib")
    with client(daemon, "lib") as imap, client(daemon, "lib") as other:
        assert imap.find_special_folder(b"\\Sent") == "Sent"
        imap.create_folder("Entwürfe/Ünter & so")
        assert "Entwürfe/Ünter & so" in [name for *_, name in imap.list_folders()]
        imap.select_folder("INBOX")
        assert imap.search(["SUBJECT", "tw"]) == [2]
        assert imap.search(["OR", "SUBJECT", "one", "BODY", "text three"]) == [1, 3]
        imap.add_flags([1], [b"\\Flagged", b"$Work"])
        assert set(imap.get_flags([1])[1]) == {b"\\Flagged", b"$work"}
        imap.idle()
        other.append("INBOX", b"Subject: four\r\n\r\nx\r\n")
        assert (4, b"EXISTS") in imap.idle_check(timeout=5)
        imap.idle_done()
        imap.move([2], "Entwürfe/Ünter & so")
        imap.copy([3], "Archive")
        assert list(subjects(other, "Entwürfe/Ünter & so")) == [b"two"]
        (fetched,) = imap.fetch([3], ["BODY.PEEK[TEXT]", "MODSEQ", "EMAILID"]).values()
        assert fetched[b"BODY[TEXT]"] == b"text three\r\n"
        imap.delete_messages([3])
        imap.expunge()
        assert imap.search() == [1, 4]
        status = imap.folder_status("INBOX", ["MESSAGES", "UNSEEN", "HIGHESTMODSEQ"])
        assert status[b"MESSAGES"] == 2


# --- mbsync ---------------------------------------------------------------------

MBSYNC = """
IMAPAccount md
Host 127.0.0.1
Port {port}
User mbsync@example.test
Pass {password}
SSLType None
AuthMechs LOGIN

IMAPStore remote
Account md

MaildirStore local
Path {home}/
Inbox {home}/INBOX
SubFolders Verbatim

Channel all
Far :remote:
Near :local:
Patterns *
Create Both
Expunge Both
Sync All
SyncState *
"""


def mbsync(daemon: Daemon, home: pathlib.Path) -> None:
    config = home.parent / "mbsyncrc"
    # in clear text: it insists on the name in the certificate, which is not 127.0.0.1
    config.write_text(
        MBSYNC.format(port=daemon.port(143), password=PASSWORD, home=home)
    )
    done = subprocess.run(
        ["mbsync", "-c", str(config), "-a"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_mbsync(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    fill(daemon, "mbsync")
    home = tmp_path / "mail"
    home.mkdir()
    mbsync(daemon, home)
    inbox = home / "INBOX"
    files = {
        next(n for n in NUMBERS if f"Subject: {n}" in path.read_text()): path
        for sub in ("new", "cur")
        for path in (inbox / sub).iterdir()
    }
    assert set(files) == set(NUMBERS)
    assert (home / "Archive").is_dir()
    # one: seen and flagged here; two: deleted here; a new one here; three: there
    name = files["one"].name.partition(":")[0]
    files["one"].rename(inbox / "cur" / f"{name}:2,FS")
    files["two"].unlink()
    (inbox / "cur" / "1.new.host:2,S").write_bytes(b"Subject: mine\n\nlocal\n")
    with client(daemon, "mbsync") as imap:
        imap.select_folder("INBOX")
        imap.add_flags(imap.search(["SUBJECT", "three"]), [b"\\Answered"])
    mbsync(daemon, home)
    with client(daemon, "mbsync") as imap:
        found = subjects(imap, "INBOX")
        assert found[b"one"] == {b"\\Seen", b"\\Flagged"}
        assert found[b"three"] == {b"\\Answered"}
        assert found[b"mine"] == {b"\\Seen"}
        assert b"two" not in found
    three = next(p for p in inbox.glob("*/*") if "Subject: three" in p.read_text())
    assert "R" in three.name.rpartition(",")[2]
    before = sorted(path.name for path in inbox.glob("*/*"))
    mbsync(daemon, home)
    assert sorted(path.name for path in inbox.glob("*/*")) == before


# --- neomutt --------------------------------------------------------------------

NEOMUTT = """
set folder = "imaps://neomutt%40example.test@127.0.0.1:{port}/"
set spoolfile = "+INBOX"
set imap_user = "neomutt@example.test"
set imap_pass = "{password}"
set certificate_file = "{home}/certificates"
set ssl_verify_host = no
set header_cache = "{home}/cache"
set message_cachedir = "{home}/bodies"
set quit = yes
set delete = yes
set confirmappend = no
set confirmcreate = no
set wait_key = no
set imap_condstore = yes
set imap_qresync = yes
set sort = date-received
"""


def on_terminal(command: list[str], home: pathlib.Path) -> str:
    """Run a program on a terminal of its own; return what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = os.environ | {"HOME": str(home), "TERM": "vt100"}
        os.execvpe(command[0], command, environment)
    shown = b""
    limit = time.monotonic() + 60
    with contextlib.suppress(OSError):
        while time.monotonic() < limit:
            ready, _, _ = select.select([terminal], [], [], 1)
            if ready:
                shown += os.read(terminal, 65536)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert status == 0, shown.decode(errors="replace")[-3000:]
    return shown.decode(errors="replace")


def test_neomutt(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    fill(daemon, "neomutt")
    pem = ssl.get_server_certificate(("127.0.0.1", daemon.port(993)))
    (tmp_path / "certificates").write_text(pem)
    config = tmp_path / "rc"
    config.write_text(
        NEOMUTT.format(port=daemon.port(993), password=PASSWORD, home=tmp_path)
    )
    keys = (
        "<first-entry><flag-message>"
        "<search>~s two<enter><delete-message>"
        "<search>~s three<enter><copy-message><kill-line>=Archive<enter>"
        "<sync-mailbox><quit>"
    )
    on_terminal(["neomutt", "-n", "-F", str(config), "-e", f"push '{keys}'"], tmp_path)
    with client(daemon, "neomutt") as imap:
        found = subjects(imap, "INBOX")
        assert set(found) == {b"one", b"three"}
        assert b"\\Flagged" in found[b"one"]
        assert list(subjects(imap, "Archive")) == [b"three"]


# --- imapflow -------------------------------------------------------------------


def node_modules() -> pathlib.Path:
    """Return where imapflow is, installing it on first use."""
    modules = ROOT / "node_modules"
    if not (modules / "imapflow").is_dir():
        npm = ["npm", "install", "--no-save", "--no-package-lock", "--no-audit"]
        subprocess.run(
            [*npm, "--no-fund", "--prefix", str(ROOT), f"imapflow@{IMAPFLOW}"],
            check=True,
            capture_output=True,
            timeout=120,
        )
    return modules


def test_imapflow(daemon: Daemon) -> None:
    fill(daemon, "imapflow")
    done = subprocess.run(
        [
            "node",
            str(HERE / "imapflow_session.cjs"),
            str(daemon.port(993)),
            "imapflow@example.test",
            PASSWORD,
        ],
        env=os.environ | {"NODE_PATH": str(node_modules())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert ["INBOX", "\\Inbox", 3] in said["folders"]
    assert ["Drafts", "\\Drafts", 0] in said["folders"]
    assert "QRESYNC" in said["capabilities"]
    assert said["exists"] == 4
    assert said["subject"] == "flow"
    assert said["source"].endswith("from imapflow\r\n")
    assert said["text"] == "from imapflow\r\n"
    assert said["found"] == [said["uid"]]
    assert said["emailId"]
    assert said["flags"] == ["$label1", "\\Flagged", "\\Seen"]
    assert said["moved"] == [1]
    assert said["status"]["messages"] == 1
    with client(daemon, "imapflow") as imap:
        assert set(subjects(imap, "INBOX")) == {b"one", b"two", b"three"}
        assert "Projekte" in [name for *_, name in imap.list_folders()]


# --- offlineimap ----------------------------------------------------------------

OFFLINEIMAP = """
[general]
accounts = md
metadata = {home}/meta
ui = quiet
[Account md]
localrepository = local
remoterepository = remote
[Repository local]
type = Maildir
localfolders = {home}/mail
[Repository remote]
type = IMAP
remotehost = 127.0.0.1
remoteport = {port}
remoteuser = offlineimap@example.test
remotepass = {password}
ssl = no
starttls = no
usecompression = no
"""


def run_offlineimap(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("offlineimap"), reason="needs offlineimap3")
def test_offlineimap(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    fill(daemon, "offlineimap")
    config = tmp_path / "offlineimaprc"
    config.write_text(
        OFFLINEIMAP.format(port=daemon.port(143), password=PASSWORD, home=tmp_path)
    )
    command = ["offlineimap", "-c", str(config), "-o"]
    run_offlineimap(command)
    mails = [p for p in (tmp_path / "mail/INBOX").glob("*/*") if p.is_file()]
    assert len(mails) == len(NUMBERS)
    two = next(path for path in mails if "Subject: two" in path.read_text())
    two.rename(two.parent.parent / "cur" / (two.name.partition(":")[0] + ":2,FS"))
    run_offlineimap(command)
    with client(daemon, "offlineimap") as imap:
        assert subjects(imap, "INBOX")[b"two"] == {b"\\Seen", b"\\Flagged"}
