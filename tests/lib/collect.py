"""Destroy every second message of an instance and collect: ``collect.py CONFIG``.

Prints the (token, address) of what stays, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from mailserverd.core.types import system
from mailserverd.services.collector import Collector, Plan
from storage.compaction import Policy
from tests.lib import instance

EAGER = Plan(Policy(grace=0.0, linger=0.0, least_waste=0.01), rate=0)


async def main(config: str) -> list[tuple[str, str]]:
    """Do it; return what stays."""
    async with instance.opened(config) as graph:
        for row in await graph.accounts.account_list():
            found = await graph.stores.directory.account_by_address(row["address"])
            assert found is not None
            access = system(found.account_id)
            for box in (await graph.mailboxes.list(access)).mailboxes:
                view = await graph.messages.view(access, box.mailbox_id)
                await graph.messages.destroy(access, list(view.email_ids)[::2])
        stores = graph.stores
        stores.blobs._appender.seal_active()
        await stores.blobs.put(b"the next segment")
        collector = Collector(
            stores.shard_dbs, graph.queue, stores.blobs, graph.clock, EAGER
        )
        done = await collector.run()
        assert done.rewritten, done
        assert done.removed, done
        return list(await instance.contents(graph))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[1]))) + "\n")
