"""The root settings: one line per table of the configuration file."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import pathlib
import ssl
from typing import Any

from mailserverd.config import kinds
from mailserverd.config.load import load
from mailserverd.config.schema import REQUIRED, Problem, option, table, tables
from mailserverd.core.urls import shown
from storage.engines import POSTGRESQL, check_url

DEFAULT_PATH = "/etc/mailserverd/mailserverd.toml"


def _engine(*schemes: str) -> kinds.Kind:
    """A URL that its engine can make something of, or empty."""
    kind = kinds.url(*schemes)

    def parse(raw: Any) -> str:
        url: str = kind.parse(raw)
        check_url(url)
        return url

    return kinds.Kind(kind.expects, parse)


SQL = _engine("sqlite", POSTGRESQL)
PROTOCOLS = ("smtp", "submission", "lmtp", "imap", "http", "metrics")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """``[server]``."""

    hostname: str = option(
        kinds.hostname,
        REQUIRED,
        "The name this server calls itself in SMTP; its PTR record should match",
        example="mail.example.org",
    )
    data_dir: str = option(
        kinds.text,
        "/var/lib/mailserverd",
        "Where databases, blobs, indexes, locks and the control socket live",
    )
    workers: int = option(
        kinds.integer(0, 256),
        1,
        "Processes that serve; 0: one per core. With more than one, another two "
        "supervise them and work in the background",
    )
    allow_root: bool = option(
        kinds.boolean, False, "Whether the daemon may run as root (tests only)"
    )
    log_level: str = option(
        kinds.choice("debug", "info", "warning", "error"), "info", "What is logged"
    )
    log_format: str = option(
        kinds.choice("json", "text"), "json", "One line per event, in this form"
    )
    drain: float = option(
        kinds.duration, 10.0, "How long SIGTERM waits for open transactions"
    )
    public_url: str = option(
        kinds.url("https", "http"),
        "",
        "Base of the URLs in the JMAP session; empty: from the request's Host",
    )

    @property
    def processes(self) -> int:
        """How many processes serve."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """``[[listener]]``."""

    protocol: str = option(
        kinds.choice(*PROTOCOLS), REQUIRED, "What is spoken", example="smtp"
    )
    address: str = option(
        kinds.address,
        REQUIRED,
        'Where: an address and port, or "systemd:NAME" for an inherited socket',
        example="0.0.0.0:25",
    )
    tls: str = option(
        kinds.choice("none", "starttls", "implicit"),
        "none",
        "none, starttls (offered), or implicit (from the first byte)",
        example="starttls",
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """``[[certificate]]``."""

    certificate: str = option(
        kinds.text,
        REQUIRED,
        "PEM file with the certificate and its chain",
        example="/etc/mailserverd/tls/fullchain.pem",
    )
    key: str = option(
        kinds.text,
        REQUIRED,
        "PEM file with the private key",
        example="/etc/mailserverd/tls/privkey.pem",
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """``[storage]``; an empty URL means the embedded engine under data_dir."""

    directory: str = option(SQL, "", "Domains, accounts, credentials, keys")
    shards: tuple[str, ...] = option(
        kinds.many(SQL), (), "Mail metadata: one URL per shard, in any order"
    )
    queue: str = option(SQL, "", "Acceptances and outbound mail")
    blobs: str = option(_engine("file", "s3"), "", "Message bytes")
    search: str = option(_engine("whoosh"), "", "Full-text indexes")
    bus: str = option(kinds.url("local"), "local:", "Hints between workers")
    cache: str = option(kinds.url("memory"), "memory:", "Inbox cache")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """``[dns]``."""

    servers: tuple[str, ...] = option(
        kinds.many(kinds.dns_server), (), "Resolvers to ask; empty: the system's"
    )
    timeout: float = option(kinds.duration, 5.0, "Limit for one look-up")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """``[inbound]``."""

    max_message_size: int = option(kinds.size, 50_000_000, "Largest message accepted")
    max_recipients: int = option(
        kinds.integer(100, 100_000), 1000, "Recipients of one message"
    )
    spf: bool = option(kinds.boolean, True, "Evaluate SPF (RFC 7208)")
    spf_fail: str = option(
        kinds.choice("mark", "reject"),
        "mark",
        "What an SPF hard fail does where no DMARC policy speaks",
    )
    dkim: bool = option(kinds.boolean, True, "Verify DKIM signatures (RFC 6376)")
    dmarc: bool = option(kinds.boolean, True, "Apply DMARC policies")
    iprev: bool = option(kinds.boolean, False, "Check the client's reverse DNS")
    dnsbl: tuple[str, ...] = option(
        kinds.many(kinds.hostname), (), "DNS block lists to ask for the client"
    )
    accept_temperror: bool = option(
        kinds.boolean,
        False,
        "Accept and mark mail whose DNS checks could not be made, instead of 451",
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """``[outbound]``."""

    port: int = option(kinds.integer(1, 65535), 25, "Port of other mail servers")
    retry_min: float = option(kinds.duration, 60.0, "First retry after about")
    retry_max: float = option(kinds.duration, 14400.0, "Longest pause between tries")
    give_up: float = option(kinds.duration, 432000.0, "Bounce after")
    delay_notice: float = option(
        kinds.duration, 14400.0, "Tell the sender of a delay after"
    )
    concurrency: int = option(
        kinds.integer(1, 1000), 50, "Connections to other servers at once"
    )
    per_destination: int = option(
        kinds.integer(1, 100), 5, "Connections to one destination at once"
    )
    smarthost: str = option(
        kinds.relay, "", 'Send everything through this host: "relay.example.net:25"'
    )
    allow_loopback: bool = option(
        kinds.boolean, False, "Deliver to MX hosts at loopback addresses (tests only)"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``[limits]``."""

    connections: int = option(
        kinds.integer(10, 1_000_000), 10_000, "Open connections per protocol"
    )
    connections_per_address: int = option(
        kinds.integer(0, 100_000), 50, "Of one client address; 0 is no limit"
    )
    command_rate: int = option(
        kinds.integer(0, 1_000_000), 0, "SMTP commands per minute and client; 0: none"
    )
    plaintext_auth: bool = option(
        kinds.boolean,
        False,
        "Allow IMAP LOGIN and HTTP Basic without TLS (loopback only)",
    )
    password_memory: int = option(
        kinds.size, 19_922_944, "Memory of one argon2id password hash"
    )
    allowed_origins: tuple[str, ...] = option(
        kinds.many(kinds.text), (), "Web origins that may open a JMAP WebSocket"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the file can say."""

    server: Server = table(Server, "The server itself.")
    listener: tuple[Listener, ...] = tables(
        Listener, "One per port. A list in conf.d replaces this list."
    )
    certificate: tuple[Certificate, ...] = tables(
        Certificate, "Chosen by SNI among several; re-read on SIGHUP and on change."
    )
    storage: Storage = table(
        Storage, "URLs of the engines; empty ones live under data_dir."
    )
    dns: Dns = table(Dns, "Name resolution.")
    inbound: Inbound = table(Inbound, "Mail from other servers (port 25).")
    outbound: Outbound = table(Outbound, "Mail to other servers.")
    limits: Limits = table(Limits, "Bounds for clients.")


def read(path: str | pathlib.Path) -> Settings:
    """Read and check the configuration; ConfigError lists every mistake."""
    file = pathlib.Path(path)
    loaded = load(Settings, file, lambda raw: _across(_with_defaults(raw, file)))
    return _with_defaults(loaded, file)


def _with_defaults(settings: Settings, file: pathlib.Path) -> Settings:
    """Fill in what follows from other keys; relative paths are the file's."""
    base = (file.parent / settings.server.data_dir).resolve()
    given = settings.storage
    storage = dataclasses.replace(
        given,
        directory=given.directory or f"sqlite:///{base}/directory.db",
        shards=given.shards or (f"sqlite:///{base}/shard-0.db",),
        queue=given.queue or f"sqlite:///{base}/queue.db",
        blobs=given.blobs or f"file://{base}/blobs",
        search=given.search or f"whoosh://{base}/search",
    )
    certificates = tuple(
        Certificate(
            certificate=str(file.parent / c.certificate), key=str(file.parent / c.key)
        )
        for c in settings.certificate
    )
    server: Any = dataclasses.replace(settings.server, data_dir=str(base))
    return dataclasses.replace(
        settings, server=server, storage=storage, certificate=certificates
    )


def _across(settings: Settings) -> list[Problem]:
    """Check what no single key can know."""
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for number, one in enumerate(settings.listener):
        path = ("listener", number)
        if one.tls != "none" and not settings.certificate:
            problems.append(
                Problem(path, f'tls = "{one.tls}" needs a [[certificate]] table')
            )
        if one.tls == "starttls" and one.protocol in {"http", "metrics"}:
            problems.append(Problem(path, 'tls must be "none" or "implicit" here'))
        if one.address in seen:
            problems.append(
                Problem(path, f"{one.address} is taken by listener {seen[one.address]}")
            )
        seen[one.address] = number + 1
        if settings.limits.plaintext_auth and not is_loopback(one.address):
            problems.append(
                Problem(
                    ("limits", "plaintext_auth"),
                    f"must be false while a listener is at {one.address}: "
                    "passwords without TLS are for loopback alone",
                )
            )
    for number, certificate in enumerate(settings.certificate):
        problems += [
            Problem(("certificate", number), text)
            for text in _certificate_problems(certificate)
        ]
    return [*problems, *_shared_databases(settings.storage)]


def _certificate_problems(pair: Certificate) -> list[str]:
    missing = [
        f"{name} is not a readable file"
        for name in (pair.certificate, pair.key)
        if not os.access(name, os.R_OK) or not pathlib.Path(name).is_file()
    ]
    if missing:
        return missing
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return [f"{pair.key} is not the key of {pair.certificate}"]
        return [
            f"{pair.certificate} and {pair.key} must be PEM files, a certificate "
            "(with its chain) and its key without passphrase"
        ]
    return []


def _shared_databases(storage: Storage) -> list[Problem]:
    """Two databases in one place would overwrite one another."""
    urls = [
        ("directory", storage.directory),
        *(("shards", url) for url in storage.shards),
        ("queue", storage.queue),
    ]
    seen: dict[str, str] = {}
    problems = []
    for key, url in urls:
        place = shown(url)
        if place in seen:
            text = f"{place} is storage.{seen[place]} too: each needs one of its own"
            problems.append(Problem(("storage", key), text))
        seen[place] = key
    return problems


def is_loopback(address: str) -> bool:
    """True for ``127.0.0.1:25`` and ``[::1]:25``."""
    if address.startswith("systemd:"):
        return False
    host = address.rpartition(":")[0].strip("[]")
    return ipaddress.ip_address(host).is_loopback
