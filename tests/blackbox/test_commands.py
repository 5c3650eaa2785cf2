"""Commands beside a running daemon are in force within a second, over the wire."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.lib import daemon
from tests.lib.clients import Imap, Jmap, Smtp

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(120)
ALICE, PASSWORD = "alice@example.test", "first-Secret-of-alice"
MESSAGE = b"Subject: one\r\n\r\nbody\r\n"
SECOND = 1.0
SESSIONS_END = 8.0  # seconds: those that wait are looked at now and then
SECRETS = {PASSWORD}


def secret(text: str) -> str:
    """Note a password: none may be found in the log at the end."""
    SECRETS.add(text)
    return text


@pytest.fixture(scope="module")
def ours(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[daemon.Daemon]:
    made = daemon.make(
        tmp_path_factory.mktemp("commands") / "ours",
        f"{ALICE}:{PASSWORD}",
        engine=engine,
    )
    made.override(
        '[server]\nlog_level = "debug"\n'
        "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
    )
    with daemon.running(made):
        yield made
    log = made.log()
    assert "Traceback" not in log, log
    for known in SECRETS:
        for form in (known, base64.b64encode(known.encode()).decode().rstrip("=")):
            assert form not in log, "a password in the log"


def within(check: Callable[[], object], limit: float = SECOND) -> None:
    until = time.monotonic() + limit
    while not check():
        assert time.monotonic() < until, "not in force in time"
        time.sleep(0.02)


# --- who may log in ------------------------------------------------------------------


def imap_login(ours: daemon.Daemon, user: str, password: str) -> bool:
    with Imap(ours.port(143)) as imap:
        return imap.run(f'LOGIN {user} "{password}"')[0].startswith(b"OK")


def logins(ours: daemon.Daemon, user: str, password: str) -> set[bool]:
    """Try on every protocol."""
    with Smtp(ours.port(587)) as smtp:
        smtp.secure()
        found = {smtp.login(user, password)[0] == 235}
    with Jmap(ours.port(80), user, password) as jmap:
        found.add(jmap.request("GET", "/jmap/session")[0] == 200)
    return found | {imap_login(ours, user, password)}


def recipient(ours: daemon.Daemon, address: str) -> int:
    with Smtp(ours.port(25)) as smtp:
        smtp.ok("MAIL FROM:<>")
        return smtp.run(f"RCPT TO:<{address}>")[0]


def test_a_new_account_can_be_used(ours: daemon.Daemon) -> None:
    user, password = "new@example.test", secret("password-of-new")
    assert recipient(ours, user) == 550
    assert not imap_login(ours, user, password)
    ours.command("account", "add", f"{user}:{password}")
    within(lambda: recipient(ours, user) == 250)
    within(lambda: logins(ours, user, password) == {True})
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, user)[0] == 250
    with Imap(ours.port(143), user, password) as imap:
        assert len(imap.messages()) == 1


class Sessions:
    """A logged-in session of every kind."""

    def __init__(
        self, ours: daemon.Daemon, user: str, password: str, stack: contextlib.ExitStack
    ) -> None:
        self.idle = stack.enter_context(Imap(ours.port(143), user, password))
        self.imap = stack.enter_context(Imap(ours.port(143), user, password))
        self.smtp = stack.enter_context(Smtp(ours.port(587)))
        self.web = stack.enter_context(Jmap(ours.port(80), user, password))
        self.events = stack.enter_context(
            socket.create_connection(("127.0.0.1", ours.port(80)), 20)
        )
        self.idle.ok("SELECT INBOX")
        self.idle.begin("IDLE")
        assert self.idle.response().startswith(b"+")
        self.smtp.secure()
        assert self.smtp.login(user, password)[0] == 235
        self.web.session()
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.events.sendall(
            b"GET /jmap/eventsource?types=*&closeafter=no&ping=0 HTTP/1.1\r\n"
            b"Host: x\r\nAuthorization: Basic " + basic.encode() + b"\r\n\r\n"
        )
        assert self.events.recv(4096).startswith(b"HTTP/1.1 200")
        self.user = user

    def check_ended(self) -> None:
        """The next word is refused, and those who only listen are sent away."""
        assert self.web.request("GET", "/jmap/session")[0] == 401
        code, text = self.smtp.run(f"MAIL FROM:<{self.user}>")
        assert code == 421, text
        self.imap.begin("NOOP")
        assert self.imap.response().startswith(b"* BYE")
        began = time.monotonic()
        assert self.idle.response().startswith(b"* BYE")
        stream = b""
        while not stream.endswith(b"0\r\n\r\n"):
            stream += self.events.recv(4096)
        assert time.monotonic() - began < SESSIONS_END


def test_a_changed_password_ends_what_used_the_old_one(ours: daemon.Daemon) -> None:
    old, new = secret("changed-old"), secret("changed-new")
    user = "changed@example.test"
    ours.command("account", "add", f"{user}:{old}")
    with contextlib.ExitStack() as stack:
        sessions = Sessions(ours, user, old, stack)
        ours.command("account", "passwd", f"{user}:{new}")
        within(lambda: logins(ours, user, new) == {True})
        assert logins(ours, user, old) == {False}
        sessions.check_ended()


def test_an_app_password_is_its_own(ours: daemon.Daemon) -> None:
    """Removing it ends its sessions, not those of the password."""
    user, password = "apps@example.test", secret("password-of-apps")
    ours.command("account", "add", f"{user}:{password}")
    made = secret(ours.command("account", "app-password", user, "phone")["password"])
    within(lambda: logins(ours, user, made) == {True})
    with contextlib.ExitStack() as stack:
        main = stack.enter_context(Imap(ours.port(143), user, password))
        sessions = Sessions(ours, user, made, stack)
        ours.command("account", "app-password", user, "phone", "--remove")
        within(lambda: logins(ours, user, made) == {False})
        sessions.check_ended()
        main.ok("NOOP")
    assert logins(ours, user, password) == {True}


def test_a_disabled_account_keeps_its_mail(ours: daemon.Daemon) -> None:
    user, password = "away@example.test", secret("password-of-away")
    ours.command("account", "add", f"{user}:{password}")
    with contextlib.ExitStack() as stack:
        sessions = Sessions(ours, user, password, stack)
        ours.command("account", "enable", user, "--off")
        within(lambda: logins(ours, user, password) == {False})
        sessions.check_ended()
    assert recipient(ours, user) == 250
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, user)[0] == 250
    ours.command("account", "enable", user)
    within(lambda: logins(ours, user, password) == {True})
    with Imap(ours.port(143), user, password) as imap:
        assert len(imap.messages()) == 1


def test_a_removed_account_is_gone(ours: daemon.Daemon) -> None:
    """An account of the same name begins anew."""
    user, password = "gone@example.test", secret("password-of-gone")
    ours.command("account", "add", f"{user}:{password}")
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, user)[0] == 250
    with contextlib.ExitStack() as stack:
        sessions = Sessions(ours, user, password, stack)
        ours.command("account", "remove", user)
        within(lambda: logins(ours, user, password) == {False})
        assert recipient(ours, user) == 550
        sessions.check_ended()
    ours.command("account", "add", f"{user}:{password}")
    with Imap(ours.port(143), user, password) as imap:
        assert imap.messages() == []
    assert ours.command("storage", "check")["faults"] == []


def test_a_recipient_that_is_removed_within_a_transaction(ours: daemon.Daemon) -> None:
    """The message is refused or delivered to the others; nothing breaks."""
    user = "brief@example.test"
    ours.command("account", "add", f"{user}:{secret('password-of-brief')}")
    with Smtp(ours.port(25)) as smtp:
        smtp.ok("MAIL FROM:<sender@outside.test>")
        smtp.ok(f"RCPT TO:<{user}>")
        smtp.ok("DATA")
        ours.command("account", "remove", user)
        smtp.send(MESSAGE + b".\r\n")
        assert smtp.reply()[0] in {450, 451, 550}
        smtp.ok("MAIL FROM:<sender@outside.test>")
        assert smtp.run(f"RCPT TO:<{user}>")[0] == 550


# --- aliases, domains, quotas --------------------------------------------------------


def test_an_alias_comes_and_goes(ours: daemon.Daemon) -> None:
    assert recipient(ours, "sales@example.test") == 550
    ours.command("alias", "add", "sales@example.test", ALICE)
    within(lambda: recipient(ours, "sales@example.test") == 250)
    ours.command("alias", "remove", "sales@example.test")
    within(lambda: recipient(ours, "sales@example.test") == 550)


def test_a_domain_comes_and_goes(ours: daemon.Daemon) -> None:
    user, password = "user@later.test", secret("password-of-later")
    assert recipient(ours, user) == 550
    ours.command("domain", "add", "later.test")
    ours.command("account", "add", f"{user}:{password}")
    within(lambda: recipient(ours, user) == 250)
    with Imap(ours.port(143), user, password) as imap:
        imap.ok("NOOP")
        ours.command("domain", "remove", "later.test", "--force")
        within(lambda: recipient(ours, user) == 550)
        imap.begin("NOOP")
        assert imap.response().startswith(b"* BYE")
    assert not imap_login(ours, user, password)


def test_a_quota_is_in_force(ours: daemon.Daemon) -> None:
    user, password = "full@example.test", secret("password-of-full")
    ours.command("account", "add", f"{user}:{password}", "--quota", "10 KB")
    big = MESSAGE + b"x" * 20_000 + b"\r\n"
    with Smtp(ours.port(25)) as smtp, Imap(ours.port(143), user, password) as imap:
        code, text = smtp.message(big, user)
        assert (code, text[:5]) == (552, "5.2.2"), text
        code, text = smtp.message(big, user, parameters=f" SIZE={len(big)}")
        assert (code, text[:5]) == (552, "5.2.2"), text
        assert imap.append(big).startswith(b"NO [OVERQUOTA]")
        assert smtp.message(MESSAGE, user)[0] == 250
        ours.command("account", "quota", user, "1 MB")
        within(lambda: smtp.message(big, user)[0] == 250)
        assert imap.append(big).startswith(b"OK")
        ours.command("account", "quota", user, "1 KB")
        within(lambda: smtp.message(MESSAGE, user)[0] == 552)
    used = ours.command("account", "quota", user)
    assert used["used"] > used["quota"] == 1000


def test_postmaster_can_be_given_to_somebody(ours: daemon.Daemon) -> None:
    user, password = "chief@example.test", secret("password-of-chief")
    ours.command("account", "add", f"{user}:{password}")
    ours.command("domain", "postmaster", "example.test", user)
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, "Postmaster@example.test")[0] == 250
    with Imap(ours.port(143), user, password) as imap:
        assert len(imap.messages()) == 1


# --- the control socket --------------------------------------------------------------


def test_others_cannot_speak_to_the_daemon(ours: daemon.Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("another user is needed")
    path = ours.home / "data/control.sock"
    program = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in done.stderr


def control(ours: daemon.Daemon, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(ours.home / "data/control.sock"))
        with contextlib.suppress(OSError):
            sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(65536):
                answer += data
        return answer


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\n",
        b"nothing\n",
        b"[]\n",
        b'{"command": 5}\n',
        b'{"command": "account.add"}\n',
        b'{"command": "account.add", "args": {"address": 5, "password": 7}}\n',
        b'{"command": "account.list", "args": {"nothing": 1}}\n',
        b'{"command": "__class__", "args": {}}\n',
        b"x" * 3_000_000,
        b"\xff\xfe\n" * 100,
    ],
)
def test_malformed_requests_are_answered(ours: daemon.Daemon, request_: bytes) -> None:
    answer = control(ours, request_)
    for line in answer.splitlines():
        assert b'"error"' in line, line
        assert b"Traceback" not in line
        assert b"INTERNAL" not in line, line
    assert ours.command("account", "list")


# --- init ----------------------------------------------------------------------------


def init(*args: str) -> Any:
    return subprocess.run(
        [*daemon.COMMAND, "init", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(daemon.ROOT)},
    )


def test_init_refuses_what_is_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path, tmp_path / "file"):
        done = init(str(target), "--port-base", "20000", "--domain", "example.test")
        assert done.returncode == os.EX_CANTCREAT, done.stderr
        assert str(target) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_init_with_a_mistake_leaves_nothing(tmp_path: pathlib.Path) -> None:
    for wrong in (
        ("--account", "no address"),
        ("--account", "a@example.test:x", "--account", "a@example.test:y"),
        ("--domain", "not a domain"),
        ("--hostname", "not a host"),
        ("--account", "@example.test:x"),
    ):
        home = tmp_path / "home"
        done = init(str(home), "--port-base", "20000", *wrong)
        assert done.returncode in {os.EX_USAGE, os.EX_CANTCREAT}, (wrong, done.stderr)
        assert done.stderr.startswith(("mailserverd: ", "Usage: ")), done.stderr
        assert not home.exists(), wrong
    home.mkdir()  # an empty one is left as it was
    init(str(home), "--port-base", "20000", "--account", "no address")
    assert list(home.iterdir()) == []


def test_init_makes_what_it_says(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    dry = init(str(home), "--port-base", "20000", "--dry-run")
    assert dry.returncode == 0
    assert not list(home.iterdir())
    done = init(str(home), "--port-base", "20000", "--account", "a@example.test")
    assert done.returncode == 0, done.stderr
    assert "password" in done.stdout
    assert (home / "mailserverd.toml").read_text() == dry.stdout
    for path in home.rglob("*"):
        private = path.name in {"key.pem", "data"} or path.suffix == ".db"
        assert not private or path.stat().st_mode & 0o077 == 0, path


def test_production_refuses_what_loopback_allows(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "home"
    done = init(str(home), "--domain", "example.test", "--account", "a@example.test:x")
    assert done.returncode == 0, done.stderr
    text = (home / "mailserverd.toml").read_text()
    for word in ("plaintext_auth", "allow_loopback", "accept_temperror", "allow_root"):
        assert word not in text
    if os.geteuid() == 0:
        ran = subprocess.run(
            [*daemon.COMMAND, "run", "--config", str(home / "mailserverd.toml")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(daemon.ROOT)},
        )
        assert ran.returncode == os.EX_NOPERM
        assert "must not run as root" in ran.stderr
