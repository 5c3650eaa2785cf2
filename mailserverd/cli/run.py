"""``mailserverd run``: the daemon in the foreground."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from mailserverd.cli import common
from mailserverd.core.errors import MailError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailserverd.settings import Settings


@click.command()
@common.options
@click.pass_obj
def run(start: Callable[..., int], config: str, as_json: bool) -> None:
    """Run in the foreground; SIGHUP reloads, SIGTERM drains and stops."""
    del as_json  # the log says in [server] log_format what form it has
    settings = common.settings(config)
    if os.geteuid() == 0 and not settings.server.allow_root:
        click.echo(
            "mailserverd: must not run as root: use the systemd unit, which has its "
            "own user and passes the ports; or set server.allow_root for a test",
            err=True,
        )
        sys.exit(os.EX_NOPERM)
    gc.disable()  # imports make no garbage; the daemon turns it on again
    try:
        sys.exit(_serve(settings, config, start))
    except MailError as error:
        common.fail(error, as_json=False)


def _serve(settings: Settings, config: str, start: Callable[..., int]) -> int:
    """Run in this process, or in several; return the exit status."""
    if settings.server.processes > 1:
        from mailserverd.app import supervisor  # noqa: PLC0415 - heavy imports

        return supervisor.run(settings, config, start)
    from mailserverd.app.daemon import run as serve  # noqa: PLC0415 - heavy imports

    async def main(reactor: Any) -> int:
        return await serve(settings, config, reactor)

    return start(main)
