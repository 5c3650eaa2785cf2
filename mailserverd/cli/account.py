"""``mailserverd account add | list | remove | passwd | app-password | quota``."""

from __future__ import annotations

import pathlib
import secrets
import sys
from typing import Any

import click

from auth.people.passwords import generate_app_password
from mailserverd.cli import common
from mailserverd.config import kinds

GENERATED = 12  # octets of randomness in a generated password
UNLIMITED = "unlimited"


@click.group("account")
def group() -> None:
    """People: their addresses, passwords and quotas."""


def _password_options(function: Any) -> Any:
    option = click.option(
        "--password-file",
        type=click.Path(path_type=pathlib.Path, dir_okay=False, exists=True),
        help="Read the password from the first line of a file.",
    )
    return option(function)


def _password(given: str, file: pathlib.Path | None) -> tuple[str, bool]:
    """Return a password, and whether it was generated and has to be shown."""
    if given:
        return given, False
    if file is not None:
        return _first_line(file), False
    if not sys.stdin.isatty():
        line = sys.stdin.readline().rstrip("\r\n")
        if line:
            return line, False
    else:
        asked: str = click.prompt(
            "password (empty: generate one)",
            hide_input=True,
            confirmation_prompt=True,
            default="",
            show_default=False,
        )
        if asked:
            return asked, False
    return secrets.token_urlsafe(GENERATED), True


def _first_line(file: pathlib.Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        text = f"{file} is not UTF-8 text"
    else:
        if lines and lines[0]:
            return lines[0]
        text = f"the first line of {file} is empty"
    raise click.BadParameter(text, param_hint="--password-file")


def _show_password(address: str, result: dict[str, Any]) -> None:
    shown = f"  password {result['password']}" if "password" in result else ""
    click.echo(f"{address}{shown}")


@group.command()
@click.argument("address", metavar="ADDRESS[:PASSWORD]")
@click.option("--name", default="", help="The person's name.")
@click.option("--quota", default="0", help='Octets, "5 GB", or "unlimited".')
@click.option("--admin", is_flag=True, help="Gets the postmaster's mail.")
@_password_options
@common.dry_run
@common.options
def add(  # noqa: PLR0913, PLR0917 - one parameter per option
    address: str,
    name: str,
    quota: str,
    admin: bool,
    password_file: pathlib.Path | None,
    dry_run: bool,
    config: str,
    as_json: bool,
) -> None:
    """Add an account; its domain must exist."""
    bare, _, given = address.partition(":")
    password, generated = _password(given, password_file)

    def show(result: dict[str, Any]) -> None:
        _show_password(result["address"], {"password": password} if generated else {})

    common.run(
        config,
        "account.add",
        as_json=as_json,
        show=show,
        add={"password": password} if generated else {},
        address=bare,
        password=password,
        name=name,
        quota=_octets(quota),
        admin=admin,
        dry_run=dry_run,
    )


@group.command("list")
@click.option("--domain", default="", help="Only of this domain.")
@common.options
def list_(domain: str, config: str, as_json: bool) -> None:
    """List accounts with what they use."""

    def show(rows: list[dict[str, Any]]) -> None:
        common.table(
            ("ADDRESS", "NAME", "STATE", "SHARD", "MESSAGES", "USED", "QUOTA"),
            [
                (
                    row["address"],
                    row["name"],
                    row["state"],
                    row["shard"],
                    row["messages"],
                    row["used"],
                    row["quota"] or UNLIMITED,
                )
                for row in rows
            ],
        )

    common.run(config, "account.list", as_json=as_json, show=show, domain=domain)


@group.command()
@click.argument("address")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.dry_run
@common.options
def remove(address: str, yes: bool, dry_run: bool, config: str, as_json: bool) -> None:
    """Remove an account and all its mail."""
    if not (yes or dry_run or as_json or not sys.stdin.isatty()):
        click.confirm(f"remove {address} and all its mail?", abort=True)
    common.run(
        config,
        "account.remove",
        as_json=as_json,
        show=lambda _: click.echo(f"removed {address}"),
        address=address,
        dry_run=dry_run,
    )


@group.command()
@click.argument("address", metavar="ADDRESS[:PASSWORD]")
@_password_options
@common.dry_run
@common.options
def passwd(
    address: str,
    password_file: pathlib.Path | None,
    dry_run: bool,
    config: str,
    as_json: bool,
) -> None:
    """Change a password; sessions that used the old one end."""
    bare, _, given = address.partition(":")
    password, generated = _password(given, password_file)
    common.run(
        config,
        "account.passwd",
        as_json=as_json,
        show=lambda _: _show_password(
            bare, {"password": password} if generated else {}
        ),
        add={"password": password} if generated else {},
        address=bare,
        password=password,
        dry_run=dry_run,
    )


@group.command()
@click.argument("address")
@click.option("--off", is_flag=True, help="Forbid logins; mail still arrives.")
@common.dry_run
@common.options
def enable(address: str, off: bool, dry_run: bool, config: str, as_json: bool) -> None:
    """Allow logins to an account again, or (--off) forbid them."""
    common.run(
        config,
        "account.enable",
        as_json=as_json,
        show=lambda r: click.echo(f"{r['address']}  {r['state']}"),
        address=address,
        on=not off,
        dry_run=dry_run,
    )


@group.command("app-password")
@click.argument("address")
@click.argument("name")
@click.option("--remove", is_flag=True, help="Remove it instead.")
@common.dry_run
@common.options
def app_password(
    address: str, name: str, remove: bool, dry_run: bool, config: str, as_json: bool
) -> None:
    """Make (or remove) a password of its own for one device or program."""
    password = "" if remove else generate_app_password()
    common.run(
        config,
        "account.app-password",
        as_json=as_json,
        show=lambda _: click.echo(password or f"removed {name} of {address}"),
        add={"password": password} if password else {},
        address=address,
        name=name,
        password=password,
        dry_run=dry_run,
    )


@group.command()
@click.argument("address")
@click.argument("octets", required=False)
@common.dry_run
@common.options
def quota(
    address: str, octets: str | None, dry_run: bool, config: str, as_json: bool
) -> None:
    """Show or set a quota: octets, "5 GB", or "unlimited"."""
    wanted = None if octets is None else _octets(octets)

    def show(result: dict[str, Any]) -> None:
        limit = (result["quota"] if wanted is None else wanted) or UNLIMITED
        click.echo(f"{result['address']}  used {result['used']} of {limit}")

    common.run(
        config,
        "account.quota",
        as_json=as_json,
        show=show,
        address=address,
        quota=wanted,
        dry_run=dry_run,
    )


def _octets(text: str) -> int:
    if text == UNLIMITED:
        return 0
    try:
        parsed: int = kinds.size.parse(int(text) if text.isdigit() else text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="quota") from None
    return parsed
