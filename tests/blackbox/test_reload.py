"""SIGHUP: settings, listeners and certificates change under open connections."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from mailserverd.cli.selfsigned import self_signed
from tests.lib import daemon
from tests.lib.clients import Imap, Jmap, Smtp, Stream, refuses, unverified
from tests.lib.ports import free_port
from tests.lib.waiting import eventually

if TYPE_CHECKING:
    import pathlib
    import ssl
    from collections.abc import Iterator

    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(120)
ALICE, PASSWORD = "alice@example.test", "reload pass"
NO_POLICY = "[inbound]\nspf = false\ndkim = false\ndmarc = false\n"
MESSAGE = b"Subject: one\r\n\r\nbody\r\n"
SETTLED = ("reloaded", "config-refused", "reload-failed")


@pytest.fixture(scope="module")
def instance(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[daemon.Daemon]:
    home = tmp_path_factory.mktemp("reload") / "ours"
    made = daemon.make(home, f"{ALICE}:{PASSWORD}", engine=engine)
    with daemon.running(made):
        yield made
    assert "Traceback" not in made.log(), made.log()


@pytest.fixture
def ours(instance: daemon.Daemon) -> Iterator[daemon.Daemon]:
    """The running instance, with its first settings."""
    tls = instance.home / "tls"
    shutil.copytree(tls, tls.with_name("tls.saved"), dirs_exist_ok=True)
    write(instance)
    assert reload(instance) == "reloaded"
    yield instance
    shutil.copytree(tls.with_name("tls.saved"), tls, dirs_exist_ok=True)
    (instance.home / "conf.d/60-more.toml").unlink(missing_ok=True)


def write(ours: daemon.Daemon, text: str = "") -> None:
    ours.override(NO_POLICY)
    ours.override(text, "60-more.toml")


def reload(ours: daemon.Daemon) -> str:
    """Send SIGHUP; return the event that says how it ended."""
    before = len(settled(ours))
    assert ours.process is not None
    ours.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(settled(ours)) > before)
    last: str = settled(ours)[-1]["event"]
    return last


def settled(ours: daemon.Daemon) -> list[dict[str, Any]]:
    return [event for event in ours.events() if event.get("event") in SETTLED]


class Open:
    """Connections of every kind that must outlive a reload."""

    def __init__(self, ours: daemon.Daemon, stack: contextlib.ExitStack) -> None:
        self.smtp = stack.enter_context(Smtp(ours.port(25)))
        self.secure = stack.enter_context(Smtp(ours.port(465), tls=True))
        self.idle = stack.enter_context(Imap(ours.port(143), ALICE, PASSWORD))
        self.imaps = stack.enter_context(
            Imap(ours.port(993), ALICE, PASSWORD, tls=True)
        )
        self.web = stack.enter_context(Jmap(ours.port(80), ALICE, PASSWORD))
        self.webs = stack.enter_context(Jmap(ours.port(443), ALICE, PASSWORD, tls=True))
        self.idle.ok("SELECT INBOX")
        self.tag = self.idle.begin("IDLE")
        assert self.idle.response().startswith(b"+")
        self.smtp.ok("MAIL FROM:<>")
        self.ports = [self.web.connect(), self.webs.connect()]

    def check(self) -> None:
        """All of them go on; the message that was begun arrives and is told."""
        self.smtp.ok(f"RCPT TO:<{ALICE}>")
        self.smtp.ok("DATA")
        self.smtp.send(MESSAGE + b".\r\n")
        assert self.smtp.reply()[0] == 250
        while b"EXISTS" not in self.idle.response():
            pass
        self.idle.send(b"DONE\r\n")
        assert self.idle.finish(self.tag)[0].startswith(b"OK")
        self.secure.ok("NOOP")
        self.imaps.ok("NOOP")
        assert [self.web.connect(), self.webs.connect()] == self.ports


@contextlib.contextmanager
def connections_that_stay(ours: daemon.Daemon) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        opened = Open(ours, stack)
        yield
        opened.check()


# --- settings ------------------------------------------------------------------------


def test_a_new_message_limit_is_in_force_everywhere(ours: daemon.Daemon) -> None:
    write(ours, "[inbound]\nmax_message_size = 20000\n")
    with connections_that_stay(ours):
        assert reload(ours) == "reloaded"
    big = MESSAGE + b"x" * 30_000 + b"\r\n"
    with Smtp(ours.port(25), greet=False) as smtp:
        assert "SIZE 20000" in smtp.ok("EHLO x.test").split("\n")
        assert smtp.message(big, ALICE)[0] == 552
        assert smtp.message(MESSAGE, ALICE)[0] == 250
    with Smtp(ours.port(587)) as smtp:
        smtp.secure()
        assert smtp.login(ALICE, PASSWORD)[0] == 235
        own = f"From: {ALICE}\r\n".encode()
        assert smtp.message(own + big, ALICE, sender=ALICE)[0] == 552
        assert smtp.message(own + MESSAGE, ALICE, sender=ALICE)[0] == 250
    with Imap(ours.port(143), ALICE, PASSWORD) as imap:
        assert imap.append(big).startswith(b"NO [TOOBIG]")
        assert imap.append(MESSAGE).startswith(b"OK")
        assert b"APPENDLIMIT=20000" in b" ".join(imap.ok("CAPABILITY"))


def test_a_new_log_level_is_in_force(ours: daemon.Daemon) -> None:
    write(ours, '[server]\nlog_level = "warning"\n')
    assert ours.process is not None
    with connections_that_stay(ours):
        ours.process.send_signal(signal.SIGHUP)
        eventually(lambda: quiet(ours))
    seen = len(ours.events())
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, ALICE)[0] == 250
    assert len(ours.events()) == seen
    write(ours)
    assert reload(ours) == "reloaded"
    assert not quiet(ours)


def quiet(ours: daemon.Daemon) -> bool:
    """True when an accepted message leaves no line."""
    before = len(ours.events("message-accepted"))
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, ALICE)[0] == 250
    return len(ours.events("message-accepted")) == before


def test_plain_text_passwords_can_be_switched_off(ours: daemon.Daemon) -> None:
    write(ours, "[limits]\nplaintext_auth = false\n")
    assert reload(ours) == "reloaded"
    with Imap(ours.port(143)) as imap:
        assert imap.run(f'LOGIN {ALICE} "{PASSWORD}"')[0].startswith(b"NO")
    with Jmap(ours.port(80), ALICE, PASSWORD) as jmap:
        assert jmap.request("GET", "/jmap/session")[0] == 403
    with Imap(ours.port(993), ALICE, PASSWORD, tls=True) as imap:
        imap.ok("NOOP")


def test_a_limit_per_client_is_in_force_for_new_connections(
    ours: daemon.Daemon,
) -> None:
    """Those who are there may stay; for each kind of its own."""
    with connections_that_stay(ours):  # two of each kind
        write(ours, "[limits]\nconnections_per_address = 3\n")
        assert reload(ours) == "reloaded"
        with (
            Smtp(ours.port(25)),
            Smtp(ours.port(25)),
            Imap(ours.port(143)),
            Stream(ours.port(80)) as web,
        ):
            with Smtp(ours.port(25), greet=False) as one_too_many:
                assert one_too_many.greeting[0] == 421
            with Imap(ours.port(143)) as one_too_many:
                assert one_too_many.greeting.startswith(b"* BYE [UNAVAILABLE]")
            # It may be refused before it knows that it is connected.
            with (
                contextlib.suppress(ConnectionResetError),
                Stream(ours.port(80)) as one_too_many,
            ):
                assert one_too_many.rest() == b""
            web.send(b"GET / HTTP/1.0\r\n\r\n")
            assert web.rest().startswith(b"HTTP/1.1 404")
    with Smtp(ours.port(25)) as smtp:
        assert smtp.message(MESSAGE, ALICE)[0] == 250


# --- listeners -----------------------------------------------------------------------


def listeners(ours: daemon.Daemon, *more: str, without: tuple[int, ...] = ()) -> str:
    """Return the first configuration's listeners, but for some, and others."""
    text = (ours.home / "mailserverd.toml").read_text()
    blocks = re.findall(r"\[\[listener\]\]\n(?:\w.*\n)+", text)
    gone = [f":{ours.port(offset)}" for offset in without]
    kept = [b for b in blocks if not any(f'{g}"' in b for g in gone)]
    return "".join([*kept, *more])


def block(protocol: str, port: int, tls: str = "none") -> str:
    return (
        f'[[listener]]\nprotocol = "{protocol}"\naddress = "127.0.0.1:{port}"\n'
        f'tls = "{tls}"\n'
    )


def test_listeners_come_and_go(ours: daemon.Daemon) -> None:
    smtp_port, imap_port = free_port(), free_port()
    more = (block("smtp", smtp_port, "starttls"), block("imap", imap_port, "implicit"))
    write(ours, listeners(ours, *more))
    with connections_that_stay(ours):
        assert reload(ours) == "reloaded"
    with Smtp(smtp_port) as smtp:
        smtp.secure()
        assert smtp.message(MESSAGE, ALICE)[0] == 250
    added = Imap(imap_port, ALICE, PASSWORD, tls=True)
    with added, connections_that_stay(ours):
        write(ours, listeners(ours, without=(143, 993, 25, 465, 80, 443)))
        assert reload(ours) == "reloaded"
        for port in (smtp_port, imap_port, *map(ours.port, (143, 993, 25, 465, 80))):
            assert refuses(port)
        added.ok("NOOP")
    write(ours)
    assert reload(ours) == "reloaded"
    with connections_that_stay(ours):
        pass


def test_the_tls_of_a_port_can_change(ours: daemon.Daemon) -> None:
    port = free_port()
    for tls in ("none", "starttls", "implicit", "none"):
        write(ours, listeners(ours, block("imap", port, tls)))
        assert reload(ours) == "reloaded"
        with Imap(port, tls=tls == "implicit") as imap:
            offered = b"STARTTLS" in b" ".join(imap.ok("CAPABILITY"))
            assert offered is (tls == "starttls"), tls


# --- mistakes ------------------------------------------------------------------------


def check_unchanged(ours: daemon.Daemon) -> None:
    with Smtp(ours.port(25), greet=False) as smtp:
        assert "SIZE 50000000" in smtp.ok("EHLO x.test").split("\n")
    with Imap(ours.port(993), ALICE, PASSWORD, tls=True) as imap:
        imap.ok("NOOP")
    with Jmap(ours.port(443), ALICE, PASSWORD, tls=True) as jmap:
        jmap.session()


def test_a_faulty_configuration_changes_nothing(ours: daemon.Daemon) -> None:
    write(
        ours,
        "[inbound]\nmax_message_size = 20000\nspff = true\n"
        + listeners(ours, without=(993,)),
    )
    with connections_that_stay(ours):
        assert reload(ours) == "config-refused"
    problem = settled(ours)[-1]["problem"]
    assert problem.startswith(f"{ours.home}/conf.d/60-more.toml:3: inbound.spff: ")
    check_unchanged(ours)


def test_a_port_that_is_taken_changes_nothing(ours: daemon.Daemon) -> None:
    """Not even what could have been done before it was noticed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(
            ours,
            "[inbound]\nmax_message_size = 20000\n"
            + listeners(ours, block("imap", port), without=(993,)),
        )
        with connections_that_stay(ours):
            assert reload(ours) == "reload-failed"
    assert f"127.0.0.1:{port}" in settled(ours)[-1]["error"]
    check_unchanged(ours)
    assert refuses(port)


# --- certificates --------------------------------------------------------------------

NAME = "mail.example.test"


def served(ours: daemon.Daemon) -> dict[str, bytes]:
    """Return the certificate that each kind of connection shows."""
    found = {}
    for name, offset in (("smtps", 465), ("imaps", 993), ("https", 443)):
        with Stream(ours.port(offset), tls=True) as stream:
            found[name] = stream.certificate()
    with Smtp(ours.port(25)) as smtp, Imap(ours.port(143)) as imap:
        smtp.secure()
        imap.secure()
        found |= {"smtp": smtp.certificate(), "imap": imap.certificate()}
    return found


def renew(ours: daemon.Daemon, name: str = NAME) -> None:
    certificate, key = self_signed(name)
    (ours.home / "tls/cert.pem").write_bytes(certificate)
    (ours.home / "tls/key.pem").write_bytes(key)


def test_a_renewed_certificate_is_served_at_once(ours: daemon.Daemon) -> None:
    before = served(ours)
    assert len(set(before.values())) == 1
    with connections_that_stay(ours):
        renew(ours)
        assert reload(ours) == "reloaded"
        after = served(ours)
    assert len(set(after.values())) == 1
    assert after != before


@pytest.mark.parametrize("fault", ["garbage", "missing", "key of another"])
def test_a_faulty_certificate_changes_nothing(ours: daemon.Daemon, fault: str) -> None:
    before = served(ours)
    if fault == "missing":
        (ours.home / "tls/cert.pem").unlink()
    elif fault == "garbage":
        (ours.home / "tls/cert.pem").write_text("nothing\n")
    else:
        (ours.home / "tls/key.pem").write_bytes(self_signed(NAME)[1])
    with connections_that_stay(ours):
        assert reload(ours) in {"config-refused", "reload-failed"}
        assert served(ours) == before


def test_certificates_are_chosen_by_name(ours: daemon.Daemon) -> None:
    """Others are added on the fly, for both TLS stacks."""
    for number, name in enumerate(("one.example.test", "two.example.test")):
        certificate, key = self_signed(name)
        (ours.home / f"tls/{number}.pem").write_bytes(certificate)
        (ours.home / f"tls/{number}.key").write_bytes(key)
    write(
        ours,
        "".join(
            f'[[certificate]]\ncertificate = "tls/{n}.pem"\nkey = "tls/{n}.key"\n'
            for n in ("cert", "0", "1")
        ).replace("tls/cert.key", "tls/key.pem"),
    )
    before = served(ours)
    assert reload(ours) == "reloaded"
    for offset in (465, 993, 443):
        shown = {
            name: shown_to(ours.port(offset), name)
            for name in (NAME, "one.example.test", "two.example.test", "x.test")
        }
        assert len(set(shown.values())) == 3
        assert shown[NAME] == shown["x.test"] == before["smtps"]


def shown_to(port: int, name: str) -> bytes:
    context: ssl.SSLContext = unverified()
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def test_tls_can_be_added_to_a_daemon_that_had_none(
    engine: Engine, tmp_path: pathlib.Path
) -> None:
    """And taken away again, with the certificates."""
    ours = daemon.make(tmp_path / "ours", f"{ALICE}:{PASSWORD}", engine=engine)
    text = (ours.home / "mailserverd.toml").read_text()
    plain = text.replace('tls = "starttls"', 'tls = "none"')
    plain = re.sub(r'\[\[listener\]\]\n.*\n.*\ntls = "implicit"\n', "", plain)
    plain = re.sub(r"\[\[certificate\]\]\n.*\n.*\n", "", plain)
    (ours.home / "mailserverd.toml").write_text(plain)
    ours.override(NO_POLICY)
    with daemon.running(ours):
        for tls in (False, True, False, True):
            (ours.home / "mailserverd.toml").write_text(text if tls else plain)
            assert reload(ours) == "reloaded"
            with Imap(ours.port(143)) as imap, Smtp(ours.port(25), greet=False) as smtp:
                assert (b"STARTTLS" in b" ".join(imap.ok("CAPABILITY"))) is tls
                assert ("STARTTLS" in smtp.ok("EHLO x.test")) is tls
            assert refuses(ours.port(993)) is not tls
        assert len(set(served(ours).values())) == 1
    assert "Traceback" not in ours.log()
