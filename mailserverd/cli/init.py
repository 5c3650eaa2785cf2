"""``mailserverd init DIR``: configuration, keys and data under one directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import secrets
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from mailserverd.cli import common
from mailserverd.cli.selfsigned import self_signed
from mailserverd.config import kinds
from mailserverd.config.example import toml
from mailserverd.core.errors import Kind, MailError

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL_PORTS = (
    # protocol, offset from --port-base, tls
    ("smtp", 25, "starttls"),
    ("submission", 587, "starttls"),
    ("submission", 465, "implicit"),
    ("lmtp", 24, "none"),
    ("imap", 143, "starttls"),
    ("imap", 993, "implicit"),
    ("http", 80, "none"),
    ("http", 443, "implicit"),
    ("metrics", 9090, "none"),
)
PUBLIC_PORTS = (
    ("smtp", "0.0.0.0:25", "starttls"),
    ("submission", "0.0.0.0:587", "starttls"),
    ("submission", "0.0.0.0:465", "implicit"),
    ("imap", "0.0.0.0:143", "starttls"),
    ("imap", "0.0.0.0:993", "implicit"),
    ("http", "0.0.0.0:443", "implicit"),
    ("metrics", "127.0.0.1:9090", "none"),
)
LOOPBACK_PROFILE: dict[str, dict[str, object]] = {
    # What production refuses and an instance on loopback allows.
    "inbound": {"accept_temperror": True},
    "outbound": {"allow_loopback": True},
    "limits": {"plaintext_auth": True, "connections_per_address": 0},
}
HIGHEST_OFFSET = 9090


@click.command()
@click.argument("directory", type=click.Path(path_type=pathlib.Path))
@click.option("--hostname", default="", help="This server's name.")
@click.option("--domain", "domains", multiple=True, help="A mail domain; repeatable.")
@click.option(
    "--account", "accounts", multiple=True, help="ADDRESS or ADDRESS:PASSWORD."
)
@click.option(
    "--port-base",
    type=click.IntRange(1024, 65535 - HIGHEST_OFFSET),
    help="An unprivileged instance on 127.0.0.1, ports from here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@common.dry_run
def init(
    directory: pathlib.Path,
    hostname: str,
    domains: tuple[str, ...],
    accounts: tuple[str, ...],
    port_base: int | None,
    **flags: bool,
) -> None:
    """Make a ready configuration, keys and data under DIRECTORY."""
    as_json = flags["as_json"]
    named = [a.partition(":")[0].rpartition("@")[2] for a in accounts]
    wanted = list(dict.fromkeys((*domains, *named)))
    try:
        name = hostname or ("localhost" if port_base else _default_name(wanted))
        _refuse_existing(directory)
        text = configuration(_checked(name), port_base)
        result: dict[str, Any] = {
            "config": str(directory / "mailserverd.toml"),
            "hostname": name,
            "domains": wanted,
        }
        if flags["dry_run"]:
            if as_json:
                common.emit(result | {"dry_run": True, "text": text})
            else:
                click.echo(text, nl=False)
            return
        with _undone_on_error(directory):
            _write(directory, text, name)
            made = asyncio.run(_fill(directory, wanted, accounts))
    except MailError as error:
        common.fail(error, as_json=as_json)
    result["accounts"] = made
    if as_json:
        common.emit(result)
    else:
        _show(result)


def configuration(hostname: str, port_base: int | None) -> str:
    """Return the text of ``mailserverd.toml``."""
    lines = ["[server]", f"hostname = {toml(hostname)}", 'data_dir = "data"']
    if port_base is not None:
        lines.append("allow_root = true")
        ports = [(p, f"127.0.0.1:{port_base + n}", t) for p, n, t in LOCAL_PORTS]
    else:
        ports = list(PUBLIC_PORTS)
    for protocol, address, tls in ports:
        lines += ["", "[[listener]]", f"protocol = {toml(protocol)}"]
        lines += [f"address = {toml(address)}", f"tls = {toml(tls)}"]
    lines += ["", "[[certificate]]"]
    lines += ['certificate = "tls/cert.pem"', 'key = "tls/key.pem"']
    if port_base is not None:
        lines += ["", "# On loopback only: what production refuses."]
        for name, keys in LOOPBACK_PROFILE.items():
            lines += [f"[{name}]", *(f"{k} = {toml(v)}" for k, v in keys.items())]
    return "\n".join(lines) + "\n"


def _default_name(domains: list[str]) -> str:
    if not domains:
        raise MailError(
            Kind.INVALID, "say --hostname mail.example.org, or name a --domain"
        )
    return f"mail.{domains[0]}"


def _checked(hostname: str) -> str:
    try:
        checked: str = kinds.hostname.parse(hostname)
    except ValueError as error:
        raise MailError(Kind.INVALID, f"--hostname {hostname!r}: {error}") from None
    return checked


def _refuse_existing(directory: pathlib.Path) -> None:
    try:
        if any(directory.iterdir()):
            raise MailError(
                Kind.ALREADY_EXISTS, f"{directory} is not empty: name a new directory"
            )
    except FileNotFoundError:
        pass  # made later
    except NotADirectoryError:
        text = f"{directory} is not a directory, or lies below a file"
        raise MailError(Kind.ALREADY_EXISTS, text) from None
    except OSError as error:
        text = f"cannot read {directory}: {error.strerror}"
        raise MailError(Kind.FORBIDDEN, text) from None


@contextlib.contextmanager
def _undone_on_error(directory: pathlib.Path) -> Iterator[None]:
    """Leave nothing half made: only what was there (nothing) before."""
    existed = directory.exists()
    try:
        yield
    except BaseException:
        for path in directory.iterdir() if directory.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not existed and directory.exists():
            directory.rmdir()
        raise


def _write(directory: pathlib.Path, text: str, hostname: str) -> None:
    fresh = [path for path in directory.absolute().parents if not path.exists()]
    os.umask(os.umask(0o077) | 0o022)  # whatever the shell hands down
    try:
        for path in (directory, directory / "data", directory / "tls"):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "conf.d").mkdir()
        certificate, key = self_signed(hostname)
        (directory / "tls/cert.pem").write_bytes(certificate)
        descriptor = os.open(
            directory / "tls/key.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
        (directory / "mailserverd.toml").write_text(text, encoding="utf-8")
        _sync(directory, len(fresh) + 1)
    except OSError as error:
        raise MailError(
            Kind.FORBIDDEN, f"cannot write {error.filename}: {error.strerror}"
        ) from error


def _sync(directory: pathlib.Path, ancestors: int) -> None:
    """Make durable all that was made, and its name in the directories above."""
    above = directory.absolute().parents[:ancestors]
    for path in (*directory.rglob("*"), directory, *above):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def _fill(
    directory: pathlib.Path, domains: list[str], accounts: tuple[str, ...]
) -> list[dict[str, str]]:
    from mailserverd.app.offline import offline  # noqa: PLC0415 - heavy imports

    settings = common.settings(str(directory / "mailserverd.toml"))
    made: list[dict[str, str]] = []

    def quiet(_state: dict[str, Any]) -> None:
        return None

    async with offline(settings, make=True) as handler:
        for domain in domains:
            await handler("domain.add", {"domain": domain}, quiet)
        for account in accounts:
            address, _, password = account.partition(":")
            given = bool(password)
            password = password or secrets.token_urlsafe(12)
            args = {"address": address, "password": password}
            await handler("account.add", args, quiet)
            made.append({"address": address} if given else {"address": address, **args})
    return made


def _show(result: dict[str, Any]) -> None:
    click.echo(f"configuration  {result['config']}")
    for account in result["accounts"]:
        generated = account.get("password")
        click.echo(
            f"account        {account['address']}"
            + (f"  password {generated}" if generated else "")
        )
    program = sys.argv[0]
    if program.endswith("__main__.py"):
        program = f"{sys.executable} -m mailserverd"
    elif shutil.which(name := pathlib.Path(program).name):
        program = name
    click.echo(f"start it with  {program} run --config {result['config']}")
