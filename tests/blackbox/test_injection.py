"""Line ends, names and markup where they are not expected: nothing comes of them."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.lib.clients import Imap, Smtp
from tests.lib.siege import (
    ALICE,
    BOB,
    CAROL,
    FAR,
    GUESS,
    Smarthost,
    besieged,
    imap,
    jmap,
    submitting,
)
from tests.lib.waiting import eventually
from tests.lib.ws import Refused, WebSocketClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib import daemon
    from tests.lib.databases import Engine

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def far(engine: Engine) -> Iterator[Smarthost]:
    with Smarthost() as host:
        yield host


@pytest.fixture(scope="module")
def ours(
    engine: Engine, far: Smarthost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[daemon.Daemon]:
    with besieged(tmp_path_factory.mktemp("siege") / "ours", far, engine) as made:
        yield made


# --- injection -------------------------------------------------------------------

# A field of that name: the letters alone stand in a signature now and then.
BCC = re.compile(rb"^(resent-)?bcc[ \t]*:", re.IGNORECASE | re.MULTILINE)
ENDS = (
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\n\r.\r\n",
)
SMUGGLED = (
    b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<bob@one.test>\r\nDATA\r\n"
    b"Subject: smuggled\r\n\r\nx\r\n.\r\n"
)


@pytest.mark.parametrize("end", ENDS)
def test_only_one_end_of_data(ours: daemon.Daemon, end: bytes) -> None:
    with Smtp(ours.port(25)) as smtp:
        smtp.ok("MAIL FROM:<x@outside.test>")
        smtp.ok(f"RCPT TO:<{BOB}>")
        smtp.ok("DATA")
        smtp.send(b"Subject: outer\r\n\r\nx" + end + SMUGGLED)
        assert smtp.reply()[0] == 554
        assert smtp.run("NOOP")[0] == 250
    with imap(ours, BOB) as client:
        found = b"".join(client.messages())
    assert b"smuggled" not in found


def test_what_leaves_is_one_clean_message(ours: daemon.Daemon, far: Smarthost) -> None:
    """Stored as it came; no peer finds a second end, or who was in Bcc."""
    for number, end in enumerate((*ENDS, b"\r\n.\r\n", b"\r\n..\r\n")):
        subject = f"clean{number}"
        raw = (
            b"From: alice@one.test\nTo: somebody@far.test\r\nBcc: carol@two.test,\r\n"
            b" secret@far.test\rSubject: " + subject.encode() + b"\r\n"
            b"Resent-Bcc: other@far.test\r\nX: y\rBcc: third@far.test\r\n\r\n"
            b"one" + end + SMUGGLED
        )
        with jmap(ours) as client:
            email = client.imported(raw)
            assert client.submitted(email, ALICE, FAR, CAROL) is None
        data = far.message(subject).data
        rest = data.replace(b"\r\n", b"")
        assert b"\n" not in rest
        assert b"\r" not in rest
        assert data.count(b"\r\n.") == data.count(b"\r\n..")
        with imap(ours, CAROL) as client:
            (local,) = (m for m in client.messages() if subject.encode() in m)
        for copy in (data, local):
            assert not BCC.search(copy.partition(b"\r\n\r\n")[0])
            assert b"secret@far.test" not in copy
            assert b"third@far.test" not in copy
        with imap(ours) as client:
            (kept,) = (m for m in client.messages("Drafts") if subject.encode() in m)
            assert kept == raw
    assert not [c for c in far.sink.commands if "evil" in c]
    assert len(far.sink.taken) == number + 1


def test_reports_tell_nobody_of_bcc(ours: daemon.Daemon) -> None:
    """The report of a delivery to one names nobody else."""
    with submitting(ours) as smtp:
        raw = (
            b"From: alice@one.test\r\nTo: bob@one.test\r\nBcc: carol@two.test\r\n"
            b"Subject: with report\r\n\r\nx\r\n"
        )
        smtp.ok(f"MAIL FROM:<{ALICE}> RET=FULL")
        smtp.ok(f"RCPT TO:<{BOB}> NOTIFY=SUCCESS")
        smtp.ok(f"RCPT TO:<{CAROL}> NOTIFY=NEVER")
        smtp.ok("DATA")
        smtp.send(raw + b".\r\n")
        assert smtp.reply()[0] == 250
    reports: list[bytes] = []

    def came() -> bool:
        with imap(ours) as client:
            reports[:] = [m for m in client.messages() if b"delivery-status" in m]
        return bool(reports)

    eventually(came)
    assert b"bob@one.test" in reports[0]
    assert b"carol" not in b"".join(reports)


@pytest.mark.parametrize(
    "text", ["x\r\nRCPT TO:<evil@far.test>", "x\nDATA", "x\0", "x>\r\nDATA\r\n"]
)
def test_no_line_ends_in_envelopes(ours: daemon.Daemon, text: str) -> None:
    with jmap(ours) as client:
        email = client.imported(b"From: alice@one.test\r\n\r\nx\r\n")
        error = client.submitted(email, ALICE, f"a{text}@far.test")
        assert error["type"] == "invalidRecipients", error
        error = client.submitted(email, f"alice{text}@one.test", FAR)
        assert error["type"] == "forbiddenMailFrom", error
        for name in ("ENVID", "RET", "AUTH", "X\r\nDATA"):
            error = client.submitted(email, ALICE, FAR, parameters={name: text})
            assert error["type"] == "invalidProperties", error
    with Smtp(ours.port(25)) as smtp:
        smtp.send(f"MAIL FROM:<a{text}@b.test>\r\nNOOP\r\n".encode())
        assert 500 <= smtp.reply()[0] < 560


def test_parameters_add_no_others(ours: daemon.Daemon, far: Smarthost) -> None:
    with jmap(ours) as client:
        raw = b"From: alice@one.test\r\nSubject: envid\r\n\r\nx\r\n"
        parameters = {"ENVID": "x AUTH=<bob@one.test> SIZE=1"}
        sent = client.submitted(client.imported(raw), ALICE, FAR, parameters=parameters)
        assert sent is None, sent
    mail = far.message("envid").mail
    assert "AUTH=" not in mail.replace("+3D", "").split("ENVID=")[0]
    assert mail.split("ENVID=")[1] == "x+20AUTH+3D<bob@one.test>+20SIZE+3D1", mail


def test_headers_made_by_jmap_hold_one_line(ours: daemon.Daemon) -> None:
    with jmap(ours) as client:
        boxes = client.ok("Mailbox/get")["list"]
        drafts = next(box["id"] for box in boxes if box["role"] == "drafts")
        nasty = "x\r\nBcc: evil@far.test\r\n\r\nbody"
        for more in (
            {"subject": nasty},
            {"from": [{"name": nasty, "email": ALICE}]},
            {"from": [{"email": nasty}]},
            {"messageId": [nasty]},
            {"header:X-Own:asText": nasty},
            {"header:X-Own": nasty},
            {f"header:X{nasty}": "x"},
            {"sentAt": nasty},
            {
                "bodyStructure": {"type": f"text/{nasty}", "partId": "1"},
                "bodyValues": {"1": {"value": "x"}},
            },
            {
                "bodyStructure": {"type": "text/plain", "partId": "1", "name": nasty},
                "bodyValues": {"1": {"value": "x"}},
            },
            {
                "bodyStructure": {"type": "text/plain", "partId": "1", "cid": nasty},
                "bodyValues": {"1": {"value": "x"}},
            },
        ):
            create = {"x": {"mailboxIds": {drafts: True}, **more}}
            answer = client.ok("Email/set", create=create)
            if not answer["created"]:
                continue
            _, raw = client.download(answer["created"]["x"]["blobId"])
            head, _, _ = raw.partition(b"\r\n\r\n")
            names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")]
            assert b"bcc" not in names, (more, raw)
            assert b"\r\nbody" not in raw, (more, raw)


DISGUISES = (
    b"Authentication-Results: mx.one.test; x=FORGED",
    b"AUTHENTICATION-RESULTS:MX.ONE.TEST;x=FORGED",
    b"Authentication-Results : mx.one.test; x=FORGED",
    b"Authentication-Results\r\n : mx.one.test; x=FORGED",
    b"Authentication-Results:\r\n\tmx.one.test\r\n ; x=FORGED",
    b"Authentication-Results: (a (b) \\)) mx.one.test 1; x=FORGED",
    b'Authentication-Results: "mx\\.one.test"; x=FORGED',
    b'Authentication-Results: "mx".one.test; x=FORGED',
    b"Authentication-Results: mx (x) .one. test; x=FORGED",
    b"Authentication-Results: mx.one.test.; x=FORGED",
    b"Authentication-Results: ; mx.one.test; x=FORGED",
    b"Authentication-Results: \xc2\xa0mx.one.test; x=FORGED",
    b"Authentication-Results: mx\xef\xbc\x8eone\xef\xbc\x8etest; x=FORGED",
    b"X: " + b"y\r\n " * 200_000 + b"\r\nAuthentication-Results: mx.one.test; x=FORGED",
)


def test_results_in_our_name_are_ours(ours: daemon.Daemon) -> None:
    with Smtp(ours.port(25)) as smtp:
        for field in DISGUISES:
            raw = field + b"\r\nFrom: x@y.test\r\nSubject: results\r\n\r\nx\r\n"
            assert smtp.message(raw, BOB)[0] == 250
    with imap(ours, BOB) as client:
        found = [m for m in client.messages() if b"Subject: results" in m]
    assert len(found) == len(DISGUISES)
    for raw, field in zip(found, DISGUISES, strict=True):
        assert b"FORGED" not in raw, field


def test_starttls_forgets_what_came_with_it(ours: daemon.Daemon) -> None:
    for offset in (25, 587):
        with Smtp(ours.port(offset)) as smtp:
            smtp.send(b"STARTTLS\r\nMAIL FROM:<injected@x.test>\r\nEHLO injected\r\n")
            assert smtp.reply()[0] == 220
            smtp.start_tls()
            assert smtp.run(f"RCPT TO:<{BOB}>")[0] == 503
            smtp.ok("EHLO x")
            assert smtp.run(f"RCPT TO:<{BOB}>")[0] == 503
    with Imap(ours.port(143)) as client:
        client.send(b'a STARTTLS\r\nb LOGIN x "y"\r\n')
        reply = client.response()
        assert not reply.startswith(b"a OK"), reply


def test_logs_hold_what_was_said_not_more(ours: daemon.Daemon) -> None:
    """``check_log`` reads it at the end."""
    forged = '"}\n{"event":"forged","level":"info"}'
    flat = forged.replace("\n", "")
    with Smtp(ours.port(25)) as smtp:
        smtp.run(f"EHLO {flat}")
        smtp.ok("EHLO x")
        raw = (
            b"From: x@y.test\r\nSubject: =?utf-7?q?+2AA-?=\r\n"
            b'Message-ID: <a"}\xed\xa0\x80\xff{"event":"forged"}@x>\r\n\r\nx\r\n'
        )
        assert smtp.message(raw, BOB, sender='"a\\"}{event"@y.test')[0] == 250
    for name in (
        forged.encode(),
        b"\xed\xa0\x80",
        b"\xff\xfe",
        b"\x1b[31m",
        b"x" * 900,
    ):
        secret = base64.b64encode(name + b":" + GUESS.encode()).decode()
        client = http.client.HTTPConnection("127.0.0.1", ours.port(80), timeout=20)
        headers = {"Authorization": f"Basic {secret}"}
        client.request("GET", "/jmap/session?x=" + GUESS, headers=headers)
        assert client.getresponse().status == 401
        client.close()
        with Imap(ours.port(143)) as reader:
            reader.begin(b"LOGIN {%d+}\r\n%b %b" % (len(name), name, GUESS.encode()))
            assert not reader.response().startswith(b"t1 OK")


# --- browsers --------------------------------------------------------------------


def test_downloads_are_neither_shown_nor_run(ours: daemon.Daemon) -> None:
    with jmap(ours) as client:
        _, made = client.upload(b"<script>alert(1)</script>", "text/html")
        for name, kind in (
            ("x.html", "text/html"),
            ("x%0d%0aSet-Cookie:%20a=b", "text/html%0d%0aSet-Cookie:%20a=b"),
            ("%22;x=%22.exe", "image/svg%2bxml"),
            ("..%2f..%2fetc%2fpasswd", "text/html;charset=%22utf-7%22"),
            ("%00", "%00"),
        ):
            path = f"/jmap/download/{client.account}/{made['blobId']}/{name}"
            client._http.request(
                "GET", f"{path}?accept={kind}", headers=client._headers
            )
            response = client._http.getresponse()
            response.read()
            assert response.status == 200, name
            fields = response.headers
            assert "Set-Cookie" not in fields
            disposition = fields["Content-Disposition"]
            assert disposition.startswith("attachment; filename="), disposition
            assert disposition.count('"') == 2
            assert "/" not in disposition.replace("''", "")
            assert fields["X-Content-Type-Options"] == "nosniff"
            assert fields["Content-Security-Policy"].startswith("sandbox")
            assert fields["Cache-Control"].startswith("private")


def test_hosts_and_origins(ours: daemon.Daemon) -> None:
    """A foreign page opens no WebSocket; a Host that is none is not repeated."""
    with jmap(ours) as client:
        for host in ('"><script>', "a b", "evil@x", "x/", "x" * 300, "a\tb"):
            client._http.putrequest("GET", "/jmap/session", skip_host=True)
            client._http.putheader("Host", host)
            client._http.putheader("Authorization", client._headers["Authorization"])
            client._http.endheaders()
            response = client._http.getresponse()
            session = json.loads(response.read())
            assert session["apiUrl"] == f"http://127.0.0.1:{ours.port(80)}/jmap/api"
            assert "no-store" in response.headers["Cache-Control"]
            assert "Access-Control-Allow-Credentials" not in response.headers
        authorization = client._headers["Authorization"]

    async def knock(origin: str) -> bool:
        headers = {"Authorization": authorization, "Origin": origin}
        port = ours.port(80)
        try:
            socket_ = await WebSocketClient.open("127.0.0.1", port, "/jmap/ws", headers)
        except Refused as refused:
            assert refused.status == 403
            return False
        await socket_.close()
        return True

    own = "http://127.0.0.1"
    assert asyncio.run(knock(own))
    for origin in ("http://evil.test", "null", f"{own}.evil.test", f"{own}@evil.test"):
        assert not asyncio.run(knock(origin)), origin
