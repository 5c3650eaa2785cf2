"""Every conversation under tests/dialogs/smtp, over a socket, with real stores."""

from __future__ import annotations

import base64
import pathlib
import re

import pytest
import uvloop

from tests.lib import dialog
from tests.lib.mailhost import PASSWORD
from tests.lib.smtpsite import smtp_site

DIALOGS = sorted((pathlib.Path(__file__).parents[2] / "dialogs/smtp").glob("*.txt"))
ALICE = "alice@example.org"
# What alice has in her inbox afterwards: subjects in order.
STORED = {
    "mx_delivery": ["one"],
    "mx_pipelining": ["p1", "p2"],
    "mx_longline": ["long line"],
    "mx_bdat": ["bdat1", "bdat2", "bdat3"],
    "mx_starttls": ["over tls"],
    "lmtp_delivery": ["lmtp", "chunks"],
}


def variables() -> dict[str, str]:
    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    return {
        "plain": encoded(f"\0{ALICE}\0{PASSWORD}"),
        "wrong": encoded(f"\0{ALICE}\0wrong"),
        "user": encoded(ALICE),
        "password": encoded(PASSWORD),
    }


@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
def test_dialog(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        kind = path.stem.partition("_")[0]
        limits = {"max_message_size": 20_000, "max_recipients": 5, "max_errors": 12}
        async with smtp_site(tmp_path, **limits) as site:
            await dialog.play(
                path, site.addresses[kind], tls=kind == "submissions", **variables()
            )
            stored = await site.host.mail(ALICE)
            subjects = [re.search(rb"\nSubject: ([^\r]*)", m) for m in stored]
            found = [s[1].decode() for s in subjects if s]
            assert found == STORED.get(path.stem, [])

    uvloop.run(main())  # as the daemon does
