"""Any byte string on any port gets a protocol error or a closed connection."""

from __future__ import annotations

import base64
import os
import pathlib
import random
import re
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from tests.lib import daemon
from tests.lib.clients import Imap, Jmap, Smtp
from tests.lib.hostile import exchange, mutated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.databases import Engine


pytestmark = pytest.mark.timeout(180)
ALICE, PASSWORD = "alice@example.test", "hostile pass"
BASIC = base64.b64encode(f"{ALICE}:{PASSWORD}".encode())
RNG = random.Random(20261121)
# offset from the base: (protocol, TLS from the first octet)
PORTS = {
    24: ("smtp", False),
    25: ("smtp", False),
    587: ("smtp", False),
    465: ("smtp", True),
    143: ("imap", False),
    993: ("imap", True),
    80: ("http", False),
    443: ("http", True),
    9090: ("http", False),
}
SMTP_REPLY = re.compile(rb"(?:[2-5][0-9]{2}[ -][\x20-\x7e]*\r\n)*")
IMAP_LINE = re.compile(rb"(?:[*+]|[!-~]{1,128}) [\x20-\x7e]*")
LITERALS = re.compile(rb"\{[0-9]+\}\r\n")
HTTP_REPLY = re.compile(rb"(?:HTTP/1\.1 [1-5][0-9]{2} .*)?", re.DOTALL)
LEAKS = (b"Traceback", b'File "', b".py", b"site-packages", b"Error(")


def client_hello() -> bytes:
    bio = ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(ssl.MemoryBIO(), bio, server_hostname="mail.example.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return bio.read()


SMTP_DIALOG = (
    b"EHLO x.test\r\nMAIL FROM:<a@x.test> SIZE=10 BODY=8BITMIME\r\n"
    b"RCPT TO:<alice@example.test> NOTIFY=NEVER\r\nDATA\r\n"
    b"Subject: x\r\n\r\n..\r\n.\r\n"
    b"MAIL FROM:<>\r\nRCPT TO:<alice@example.test>\r\nBDAT 5 LAST\r\nab\r\n\n"
    b"AUTH PLAIN AGEAYg==\r\nSTARTTLS\r\nVRFY x\r\nRSET\r\nNOOP\r\nQUIT\r\n"
)
IMAP_LOGIN = b'x LOGIN alice@example.test "hostile pass"\r\n'
IMAP_DIALOG = (
    b'a CAPABILITY\r\nb ID ("name" NIL)\r\n'
    b"c ENABLE UTF8=ACCEPT\r\nd SELECT INBOX (CONDSTORE)\r\n"
    b"e APPEND INBOX (\\Seen) {5+}\r\nab\r\nc\r\n"
    b"f FETCH 1:* (FLAGS UID ENVELOPE BODYSTRUCTURE BODY.PEEK[1.MIME]<0.10>)\r\n"
    b'g UID SEARCH CHARSET UTF-8 OR SUBJECT {1+}\r\nx HEADER a "b" NOT 1:*\r\n'
    b'h STORE 1 +FLAGS.SILENT (\\Deleted $x)\r\ni LIST (SUBSCRIBED) "" ("*" %) '
    b"RETURN (CHILDREN)\r\nj UID COPY 1:* Trash\r\nk EXPUNGE\r\nl IDLE\r\nDONE\r\n"
    b"m STATUS INBOX (MESSAGES UNSEEN)\r\nn AUTHENTICATE PLAIN =\r\n*\r\no LOGOUT\r\n"
)
HTTP_BODY = (
    b'{"using":["urn:ietf:params:jmap:core","urn:ietf:params:jmap:mail"],"methodCalls":'
    b'[["Email/query",{"accountId":"a1","filter":{"text":"x"}},"0"],["Email/get",'
    b'{"accountId":"a1","#ids":{"resultOf":"0","name":"Email/query","path":"/ids"}},"1"]]}'
)
HTTP_DIALOG = (
    b"POST /jmap/api HTTP/1.1\r\nHost: x.test\r\nAuthorization: Basic "
    + BASIC
    + b"\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(HTTP_BODY)
    + HTTP_BODY
    + b"GET /jmap/session?x=%00 HTTP/1.1\r\nHost: x.test\r\nAuthorization: Basic "
    + BASIC
    + b"\r\nRange: bytes=0-1\r\n\r\n"
    b"GET /jmap/download/a1/b/%2e%2e%2f HTTP/1.1\r\nHost: x\r\n"
    b"Connection: close\r\n\r\n"
)
DIALOGS = {"smtp": SMTP_DIALOG, "imap": IMAP_DIALOG, "http": HTTP_DIALOG}
PAYLOADS = {
    "nothing": b"",
    "a NUL": b"\0",
    "many NULs": b"\0" * 100_000,
    "random": RNG.randbytes(100_000),
    "random lines": b"\r\n".join(RNG.randbytes(60) for _ in range(300)),
    "high bytes": b"\xff" * 5000 + b"\r\n",
    "line feeds": b"\n" * 50_000,
    "line ends": b"\r\n" * 50_000,
    "carriage returns": b"\r" * 50_000,
    "a huge line": b"A" * 8_000_000 + b"\r\n",
    "a huge line without end": b"a FETCH 1:" + b"9" * 4_000_000,
    "a TLS client": client_hello(),
    "an HTTP client": b"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n",
    "an HTTP/2 client": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "an SMTP client": SMTP_DIALOG,
    "an IMAP client": IMAP_LOGIN + IMAP_DIALOG,
    "an SSH client": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a PROXY header": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nEHLO x\r\n",
    "SMTP: a chunk of all memory": b"EHLO x\r\nBDAT 99999999999999999999 LAST\r\nx",
    "SMTP: a chunk below zero": b"EHLO x\r\nBDAT -1 LAST\r\n",
    "SMTP: a size of all memory": b"EHLO x\r\nMAIL FROM:<> SIZE="
    b"99999999999999999999\r\n",
    "SMTP: control characters": b"EHLO x\r\nMAIL FROM:<\x01\x7f\x1b[2J@x>\r\n",
    "SMTP: a command of 1000 parameters": b"EHLO x\r\nMAIL FROM:<>"
    + b" A=B" * 400
    + b"\r\n",
    "SMTP: STARTTLS and commands": b"EHLO x\r\nSTARTTLS\r\nMAIL FROM:<>\r\n",
    "IMAP: a literal of all memory": b"a LOGIN {99999999999999999999}\r\n",
    "IMAP: a literal of 4 GB": b"a LOGIN {4294967296+}\r\nx",
    "IMAP: literals without end": b"a LOGIN " + b"{1+}\r\na " * 2000 + b"\r\n",
    "IMAP: deep parentheses": b"a SEARCH " + b"(" * 60_000 + b"\r\n",
    "IMAP: a huge tag": b"a" * 60_000 + b" NOOP\r\n",
    "HTTP: headers without end": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000,
    "HTTP: a huge header": b"GET / HTTP/1.1\r\nA: " + b"b" * 4_000_000,
    "HTTP: a length below zero": b"POST /jmap/api HTTP/1.1\r\n"
    b"Content-Length: -1\r\n\r\n",
    "HTTP: two lengths": b"POST /jmap/api HTTP/1.1\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\nab",
    "HTTP: length and chunks": b"POST /jmap/api HTTP/1.1\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP: wrong chunks": b"POST /jmap/api HTTP/1.1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\nab",
    "HTTP: a path out": b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n"
    b"Connection: close\r\n\r\n",
    "HTTP: a bad WebSocket": b"GET /jmap/ws HTTP/1.1\r\nUpgrade: websocket\r\n"
    b"Authorization: Basic " + BASIC + b"\r\nConnection: close\r\n\r\n\xff\xff\xff",
    "HTTP: bad JSON": b"POST /jmap/api HTTP/1.1\r\nContent-Type: application/json\r\n"
    b"Authorization: Basic " + BASIC + b"\r\nContent-Length: 20000\r\n"
    b"Connection: close\r\n\r\n" + b"[" * 20_000,
}


@pytest.fixture(scope="module")
def ours(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[daemon.Daemon]:
    home = tmp_path_factory.mktemp("hostile")
    made = daemon.make(home / "ours", f"{ALICE}:{PASSWORD}", engine=engine)
    made.override("[inbound]\nspf = false\ndkim = false\ndmarc = false\n")
    with daemon.running(made):
        yield made
        assert made.process is not None
        assert made.process.poll() is None, "the daemon died"
    log = made.log()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    assert not [e for e in made.events() if e.get("level") == "error"]


def check_answer(protocol: str, answer: bytes) -> None:
    for leak in LEAKS:
        assert leak not in answer, answer[-2000:]
    if protocol == "smtp":
        assert SMTP_REPLY.fullmatch(answer), answer[-2000:]
    elif protocol == "imap":
        assert not answer or answer.startswith(b"* OK [CAPABILITY "), answer[:200]
        for line in LITERALS.sub(b"", answer).split(b"\r\n")[:-1]:
            assert IMAP_LINE.fullmatch(line), line
    else:
        assert HTTP_REPLY.fullmatch(answer), answer[-2000:]


def check_alive(ours: daemon.Daemon) -> None:
    """Everybody else is served as if nothing had been."""
    with Smtp(ours.port(25)) as smtp:
        code, text = smtp.message(b"Subject: alive\r\n\r\n", ALICE)
        assert code == 250, text
    with Imap(ours.port(143), ALICE, PASSWORD) as imap:
        imap.ok("SELECT INBOX")
    with Jmap(ours.port(80), ALICE, PASSWORD) as jmap:
        jmap.session()


@pytest.mark.parametrize("offset", PORTS)
def test_any_bytes_get_a_protocol_error(ours: daemon.Daemon, offset: int) -> None:
    protocol, tls = PORTS[offset]
    for name, payload in PAYLOADS.items():
        try:
            check_answer(protocol, exchange(ours.port(offset), payload, tls=tls))
        except AssertionError as error:
            raise AssertionError(name) from error
    check_alive(ours)


@pytest.mark.parametrize("offset", [465, 993, 443])
def test_plain_bytes_at_a_tls_port_get_nothing(
    ours: daemon.Daemon, offset: int
) -> None:
    """At most a TLS alert."""
    for name, payload in PAYLOADS.items():
        answer = exchange(ours.port(offset), payload)
        if payload != PAYLOADS["a TLS client"]:
            assert len(answer) <= 64, (name, answer)
            assert not answer or answer[0] == 0x15, (name, answer)
    check_alive(ours)


@pytest.mark.parametrize("offset", [24, 25, 587, 143, 80])
def test_mutated_dialogs(ours: daemon.Daemon, offset: int) -> None:
    protocol, _ = PORTS[offset]
    for seed in range(int(os.environ.get("HOSTILE_ROUNDS", "150"))):
        data = mutated(random.Random(seed * 1000 + offset), DIALOGS[protocol])
        data = IMAP_LOGIN + data if protocol == "imap" else data
        try:
            check_answer(protocol, exchange(ours.port(offset), data))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {data!r}") from error
    check_alive(ours)


# --- memory and time ------------------------------------------------------------------

MB = 1_000_000


def memory(ours: daemon.Daemon) -> int:
    """Return the daemon's resident octets."""
    assert ours.process is not None
    status = pathlib.Path(f"/proc/{ours.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def flood(socks: list[socket.socket], data: bytes, most: int) -> None:
    """Write to all until the server takes no more for a moment, or enough."""
    left = dict.fromkeys(socks, most)
    while left and (ready := select.select([], list(left), [], 0.5)[1]):
        for sock in ready:
            try:
                left[sock] -= sock.send(data)
            except ConnectionError:
                left[sock] = 0  # cut off: that is a limit, too
            if left[sock] <= 0:
                del left[sock]


FLOODS = {
    # offset, what it begins with, what follows without end
    "SMTP commands, answers unread": (25, b"", b"EHLO x\r\n" * 8_000),
    "SMTP a line without end": (25, b"", b"A" * 65536),
    "IMAP commands, answers unread": (143, b"", b"a CAPABILITY\r\n" * 4_000),
    "IMAP a line without end": (143, b"a LOGIN ", b"A" * 65536),
    "HTTP requests, answers unread": (
        80,
        b"",
        b"GET /jmap/session HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000,
    ),
    "HTTP a body without login": (
        80,
        b"POST /jmap/upload/a1 HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n",
        b"A" * 65536,
    ),
    "HTTP a chunked body without login": (
        80,
        b"POST /jmap/upload/a1 HTTP/1.1\r\nHost: x\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
        (b"10000\r\n" + b"A" * 65536 + b"\r\n"),
    ),
    "HTTP a header block without end": (
        80,
        b"GET / HTTP/1.1\r\n",
        b"A: b\r\n" * 10_000,
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_memory_is_bounded_in_a_flood(ours: daemon.Daemon, name: str) -> None:
    """Thirty clients that send 4 MB each, if they can, and read nothing."""
    offset, head, data = FLOODS[name]
    before = memory(ours)
    clients = []
    try:
        for _ in range(30):
            sock = socket.socket()
            clients.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", ours.port(offset)))
            sock.sendall(head)
            sock.setblocking(False)
        flood(clients, data, 4 * MB)
        assert memory(ours) - before < 40 * MB
        check_alive(ours)
    finally:
        for sock in clients:
            sock.close()


def test_memory_is_bounded_while_messages_arrive(ours: daemon.Daemon) -> None:
    """Large messages lie in files: 20 of 10 MB at once by SMTP and by APPEND."""
    before, line = memory(ours), b"x" * 998 + b"\r\n"
    clients: list[Smtp | Imap] = []
    try:
        for number in range(20):
            if number % 2:
                smtp = Smtp(ours.port(25))
                clients.append(smtp)
                smtp.ok("MAIL FROM:<>")
                smtp.ok(f"RCPT TO:<{ALICE}>")
                smtp.ok("DATA")
            else:
                imap = Imap(ours.port(143), ALICE, PASSWORD)
                clients.append(imap)
                imap.begin("APPEND INBOX {40000000}")
                assert imap.response().startswith(b"+")
            clients[-1].send(line * 10_000)
        assert memory(ours) - before < 60 * MB
        check_alive(ours)
    finally:
        for client in clients:
            client.close()
    spool = ours.home / "data/spool"
    until = time.monotonic() + 10
    while any(spool.iterdir()):
        assert time.monotonic() < until, "files of clients that left remain"
        time.sleep(0.02)


def test_half_open_and_slow_clients_hinder_nobody(ours: daemon.Daemon) -> None:
    """Hundreds that say nothing, or an octet now and then."""
    silent = [
        socket.create_connection(("127.0.0.1", ours.port(offset)), 10)
        for offset in PORTS
        for _ in range(60)
    ]
    try:
        for sock in silent[::2]:
            sock.send(b"\x16")
        check_alive(ours)
        with Smtp(ours.port(25), greet=False) as slow:
            for octet in b"EHLO slow.test\r\nNOOP\r\nQUIT\r\n":
                slow.send(bytes((octet,)))
            assert b"221 2.0.0" in slow.rest()
        check_alive(ours)
    finally:
        for sock in silent:
            sock.close()


def test_uploads_that_broke_off_give_their_place_back(ours: daemon.Daemon) -> None:
    """Each held one of the account's concurrent uploads for ever."""
    with Jmap(ours.port(80), ALICE, PASSWORD) as jmap:
        jmap.session()
        head = (
            f"POST /jmap/upload/{jmap.account} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Basic {BASIC.decode()}\r\nContent-Length: 9000000\r\n\r\n"
        ).encode()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", ours.port(80)), 10) as sock:
                sock.sendall(head + b"x" * 200_000)
        until = time.monotonic() + 10
        while (status := jmap.upload(b"x" * 200_000)[0]) != 201:
            assert time.monotonic() < until, status
            time.sleep(0.05)


@pytest.fixture(scope="module")
def filled(ours: daemon.Daemon) -> daemon.Daemon:
    """With 30 messages of 1 MB each in the Archive."""
    body = (b"x" * 70 + b"\r\n") * 14_000
    with Imap(ours.port(143), ALICE, PASSWORD) as imap:
        for number in range(30):
            raw = b"Subject: large %d\r\n\r\n" % number + body
            assert imap.append(raw, "Archive").startswith(b"OK")
    return ours


def unread(port: int, first: bytes, size: int = 4096) -> socket.socket:
    """Connect with a small window, send something, and read nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.connect(("127.0.0.1", port))
    sock.sendall(first)
    return sock


def some(sock: socket.socket) -> bytes:
    """Return the first octets that were sent to somebody."""
    data = b""
    while len(data) < 2000:
        data += sock.recv(2000)
    return data


def test_memory_is_bounded_while_nobody_reads_large_answers(
    filled: daemon.Daemon,
) -> None:
    """Each asks for 30 MB, ten times over."""
    before = memory(filled)
    with Jmap(filled.port(80), ALICE, PASSWORD) as jmap:
        boxes = jmap.ok("Mailbox/get", ids=None)["list"]
        (box,) = [box["id"] for box in boxes if box["role"] == "archive"]
        ids = jmap.ok("Email/query", filter={"inMailbox": box})["ids"]
        got = jmap.ok("Email/get", ids=ids, properties=["blobId"])["list"]
        account = jmap.account
    assert len(got) == 30
    fetch = (
        IMAP_LOGIN + b"a EXAMINE Archive\r\n" + b"b UID FETCH 1:* BODY.PEEK[]\r\n" * 10
    )
    downloads = b"".join(
        f"GET /jmap/download/{account}/{email['blobId']}/x HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Basic {BASIC.decode()}\r\n\r\n".encode()
        for email in got
    )
    clients = [unread(filled.port(143), fetch) for _ in range(20)]
    clients += [unread(filled.port(80), downloads) for _ in range(20)]
    try:
        check_alive(filled)
        until, most = time.monotonic() + 3, 0
        while time.monotonic() < until:  # they go on as far as they can
            most = max(most, memory(filled) - before)
            check_alive(filled)
        assert most < 80 * MB, most
        assert b"FETCH (UID" in some(clients[0])
        assert b"HTTP/1.1 200" in some(clients[-1])
    finally:
        for sock in clients:
            sock.close()
    check_alive(filled)


def test_pushes_that_nobody_reads_do_not_pile_up(filled: daemon.Daemon) -> None:
    """Idling IMAP sessions and event sources of clients that went to sleep."""
    before = memory(filled)
    idle = IMAP_LOGIN + b"a SELECT Drafts\r\nb IDLE\r\n"
    events = (
        b"GET /jmap/eventsource?types=*&closeafter=no&ping=0 HTTP/1.1\r\nHost: x\r\n"
        b"Authorization: Basic " + BASIC + b"\r\n\r\n"
    )
    clients = [unread(filled.port(143), idle) for _ in range(30)]
    clients += [unread(filled.port(80), events) for _ in range(30)]
    try:
        with Imap(filled.port(143), ALICE, PASSWORD) as imap:
            for _ in range(10):
                tags = [
                    imap.begin(b"APPEND Drafts {15+}\r\nSubject: x\r\n\r\n\r\n")
                    for _ in range(50)
                ]
                assert all(imap.finish(tag)[0].startswith(b"OK") for tag in tags)
            imap.ok("SELECT Drafts")
            for word in (b"+", b"-") * 5:
                imap.ok(b"STORE 1:* " + word + b"FLAGS.SILENT (\\Flagged)")
        assert memory(filled) - before < 40 * MB
        check_alive(filled)
        assert b"EXISTS" in some(clients[0])
        assert b"HTTP/1.1 200" in clients[-1].recv(2000)
    finally:
        for sock in clients:
            sock.close()
