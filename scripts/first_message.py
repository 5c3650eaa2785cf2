"""Make an instance under ./var, start it, send a first message and read it back."""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.message
import email.utils
import imaplib
import json
import pathlib
import signal
import smtplib
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMAND = [str(pathlib.Path(sys.executable).with_name("mailserverd"))]
ALICE, BOB, PASSWORD = "alice@example.test", "bob@example.test", "quickstart"
PORTS = (24, 25, 587, 465, 143, 993, 80, 443, 9090)


def choose_base(wanted: int | None) -> int:
    """Return a base whose ports are free."""
    for base in [wanted] if wanted else range(20000, 50000, 1000):
        if all_free(base):
            return base
    sys.exit(f"quickstart: ports from {wanted or 20000} are taken; say --port-base N")


def all_free(base: int) -> bool:
    """Return whether nothing listens on any port of this base."""
    return all(_free(base + port) for port in PORTS)


def _free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return True
    return False


def instance(wanted: int | None) -> tuple[pathlib.Path, int]:
    """Return the instance under ./var, made when it is not there yet."""
    home, note = ROOT / "var", ROOT / "var/port-base"
    if note.exists():
        base = int(note.read_text())
        if wanted not in {None, base}:
            sys.exit(
                f"quickstart: {home} was made with --port-base {base}; remove it first"
            )
        if not all_free(base):
            sys.exit(
                f"quickstart: ports from {base} are taken: does the instance in "
                f"{home} run already?"
            )
        print(f"using the instance in {home}")
        return home, base
    base = choose_base(wanted)
    print(f"making an instance in {home} ...")
    accounts = [x for a in (ALICE, BOB) for x in ("--account", f"{a}:{PASSWORD}")]
    made = subprocess.run(
        [*COMMAND, "init", str(home), "--port-base", str(base), *accounts], check=False
    )
    if made.returncode:
        sys.exit(made.returncode)  # it has said why
    note.write_text(f"{base}\n")
    return home, base


def wait_for(port: int, daemon: subprocess.Popen[bytes], log: pathlib.Path) -> None:
    """Wait until the daemon answers, or say why it does not."""
    until = time.monotonic() + 30
    while time.monotonic() < until and daemon.poll() is None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), 1) as sock,
        ):
            if sock.recv(4):
                return
        time.sleep(0.05)
    sys.exit(f"quickstart: the daemon did not start:\n{log.read_text()[-3000:]}")


def send(base: int) -> str:
    """Send a message from outside to bob by SMTP and return its Message-ID."""
    message = email.message.EmailMessage()
    message["From"], message["To"] = "Friend <friend@example.net>", BOB
    message["Subject"] = "Your first message"
    message["Date"] = email.utils.formatdate()
    message["Message-ID"] = email.utils.make_msgid(domain="example.net")
    message.set_content("It arrived by SMTP, and is read over IMAP and JMAP.\n")
    with smtplib.SMTP("127.0.0.1", base + 25, timeout=30) as smtp:
        smtp.send_message(message)
    return str(message["Message-ID"])


def read_imap(base: int, message_id: str) -> bytes:
    """Return the message as IMAP shows it."""
    with imaplib.IMAP4("127.0.0.1", base + 143, timeout=30) as imap:
        imap.login(BOB, PASSWORD)
        imap.select("INBOX", readonly=True)
        _, found = imap.uid("SEARCH", "HEADER", "Message-ID", message_id)
        uid = found[0].split()[-1].decode()
        _, data = imap.uid("FETCH", uid, "(BODY.PEEK[])")
        part = data[0]
        assert isinstance(part, tuple)
        return part[1]


def read_jmap(base: int) -> dict[str, object]:
    """Return the newest email as JMAP shows it."""
    credentials = base64.b64encode(f"{BOB}:{PASSWORD}".encode()).decode()
    headers = {
        "Authorization": f"Basic {credentials}",
        "Content-Type": "application/json",
    }
    url = f"http://127.0.0.1:{base + 80}"
    get = urllib.request.Request(f"{url}/jmap/session", headers=headers)
    session = json.load(urllib.request.urlopen(get, timeout=30))
    account = session["primaryAccounts"]["urn:ietf:params:jmap:mail"]
    sort = [{"property": "receivedAt", "isAscending": False}]
    query = {"accountId": account, "sort": sort, "limit": 1}
    back = {"resultOf": "0", "name": "Email/query", "path": "/ids"}
    wanted = ["subject", "from", "preview", "receivedAt"]
    calls = [
        ["Email/query", query, "0"],
        ["Email/get", {"accountId": account, "#ids": back, "properties": wanted}, "1"],
    ]
    using = ["urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail"]
    body = json.dumps({"using": using, "methodCalls": calls}).encode()
    post = urllib.request.Request(f"{url}/jmap/api", body, headers)
    answer = json.load(urllib.request.urlopen(post, timeout=30))
    email_: dict[str, object] = answer["methodResponses"][1][1]["list"][0]
    return email_


def explain(home: pathlib.Path, base: int) -> None:
    """Print how to connect a mail client."""
    print(f"""
connect a mail client (the certificate is self-signed)
  name and password   {ALICE} or {BOB}, password {PASSWORD}
  IMAP                127.0.0.1 port {base + 993} (TLS) or {base + 143} (STARTTLS)
  submission          127.0.0.1 port {base + 465} (TLS) or {base + 587} (STARTTLS)
  JMAP                http://127.0.0.1:{base + 80}/.well-known/jmap
  metrics             http://127.0.0.1:{base + 9090}/metrics
  commands            {COMMAND[0]} account list --config {home}/mailserverd.toml
  log                 {home}/daemon.log""")


def show(base: int, daemon: subprocess.Popen[bytes], log: pathlib.Path) -> None:
    """Send a message and print how it is read."""
    wait_for(base + 25, daemon, log)
    message_id = send(base)
    print(f"sent by SMTP: {message_id}")
    print("read by IMAP:\n")
    print(read_imap(base, message_id).decode(errors="replace"))
    print(f"read by JMAP: {json.dumps(read_jmap(base), indent=2)}")


def stop(_signal: int, _frame: object) -> None:
    """Leave through every ``finally``: the daemon ends with this script."""
    sys.exit(0)


def main() -> int:
    """Do everything once, then keep running unless --once."""
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the check")
    parser.add_argument("--port-base", type=int, metavar="N", help="1024 to 56445")
    args = parser.parse_args()
    if args.port_base is not None and not 1024 <= args.port_base <= 56445:
        parser.error("--port-base must be from 1024 to 56445")
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    home, base = instance(args.port_base)
    log = home / "daemon.log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [*COMMAND, "run", "--config", str(home / "mailserverd.toml")],
            stdout=output,
            stderr=output,
        )
    try:
        show(base, daemon, log)
        if args.once:
            return 0
        explain(home, base)
        print("\nrunning; Ctrl-C stops it", flush=True)
        return daemon.wait()
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)


if __name__ == "__main__":
    sys.exit(main())
