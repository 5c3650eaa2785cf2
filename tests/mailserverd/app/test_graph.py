"""New settings reach the services that have been built with older ones."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from mailserverd.app.graph import build
from mailserverd.app.stores import make_missing, open_stores
from mailserverd.core.ports import SystemClock
from mailserverd.core.types import Access, Envelope, Recipient
from mailserverd.settings import read

if TYPE_CHECKING:
    import pathlib

CLOCK = SystemClock()
TEXT = '[server]\nhostname = "mail.example.test"\ndata_dir = "data"\n'
ALICE = "alice@example.test"
MESSAGE = b"From: alice@example.test\r\n\r\n"


def test_mail_given_to_the_queue_expires_as_now_configured(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "mailserverd.toml").write_text(TEXT)
    settings = read(tmp_path / "mailserverd.toml")
    make_missing(settings, CLOCK)

    async def main() -> None:
        stores = await open_stores(settings, CLOCK)
        graph = build(settings, stores, CLOCK)
        try:
            commands = graph.accounts.commands()
            await commands["domain.add"](domain="example.test")
            await commands["account.add"](address=ALICE, password="a pass word")
            record = await stores.directory.account_by_address(ALICE)
            assert record is not None
            access = Access(record.account_id, record.account_id)
            envelope = Envelope(ALICE, (Recipient("x@remote.test"),))
            for days in (5, 2):
                outbound = dataclasses.replace(
                    settings.outbound, give_up=days * 86400.0
                )
                graph.apply(dataclasses.replace(settings, outbound=outbound))
                sent = await graph.submission.submit(access, envelope, MESSAGE)
                queued = (await graph.queue.show(sent.queue_id)).message
                assert queued.expires - queued.created == days * 86400
        finally:
            await graph.close()
            await stores.close()

    asyncio.run(main())
