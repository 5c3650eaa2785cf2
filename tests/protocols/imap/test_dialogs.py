"""Every conversation under tests/dialogs/imap, over a socket, with real stores."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from tests.lib import dialog
from tests.lib.imap import USER, imap_host
from tests.lib.mailhost import PASSWORD

DIALOGS = sorted((pathlib.Path(__file__).parents[2] / "dialogs/imap").glob("*.txt"))


@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
def test_dialog(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    async def play() -> None:
        async with imap_host(tmp_path) as host:
            await dialog.play(
                path, ("127.0.0.1", host.port), user=USER, password=PASSWORD
            )

    asyncio.run(play())
