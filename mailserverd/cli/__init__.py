"""The command line: one file per command group."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

COMMANDS = {
    "init": ("init", "init"),
    "run": ("run", "run"),
    "config": ("config_cmd", "group"),
    "account": ("account", "group"),
    "alias": ("alias", "group"),
    "domain": ("domain", "group"),
    "queue": ("queue", "group"),
    "storage": ("storage_cmd", "group"),
}
click.UsageError.exit_code = os.EX_USAGE  # sysexits, as all our codes


class Lazy(click.Group):
    """Imports a command's file only when it is called: start-up stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the documentation."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        found: Any = getattr(importlib.import_module(f"mailserverd.cli.{module}"), name)
        command: click.Command = found
        return command


@click.command(cls=Lazy)
@click.version_option(package_name="mailserverd")
def main() -> None:
    """A mail server: SMTP, IMAP and JMAP in one daemon."""
