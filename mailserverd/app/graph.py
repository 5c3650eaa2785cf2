"""The object graph above the stores: every service, built once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from auth.people.authenticate import Authenticator, Limits
from mailserverd.app.accounts import accounts, hasher
from mailserverd.app.offload import ThreadOffload
from mailserverd.core.types import system
from mailserverd.net.dns import CachingResolver
from mailserverd.net.smtp_out import TcpConnector
from mailserverd.services.acceptances import Acceptances
from mailserverd.services.arrival import Context, InboundPolicy
from mailserverd.services.changes import Changes
from mailserverd.services.collector import Collector
from mailserverd.services.deliver import Deliver
from mailserverd.services.figures import counted_here, watch_queue
from mailserverd.services.health import shards_that_fail, watch
from mailserverd.services.identities import Identities
from mailserverd.services.indexer import Indexer
from mailserverd.services.leader import Leader
from mailserverd.services.mailboxes import Mailboxes
from mailserverd.services.messages import Messages
from mailserverd.services.pruning import Pruning
from mailserverd.services.queue import QueueRunner, QueueSettings
from mailserverd.services.receive import Kernel, Receive
from mailserverd.services.relay import Relay
from mailserverd.services.routes import Router, RouteSettings
from mailserverd.services.search import Search
from mailserverd.services.submission import Submission, SubmissionLimits
from mailserverd.services.submissions import Submissions
from mailserverd.services.upkeep import Upkeep
from protocols.smtp.delivery import SmtpDialer
from storage.engines import for_nodes, open_bus, open_cache, open_search
from storage.metadata import accounts as units
from storage.metadata.queue import MailQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailserverd.app.stores import Stores
    from mailserverd.core.ports import Clock, Resolver
    from mailserverd.services.accounts import Accounts
    from mailserverd.services.figures import Counted
    from mailserverd.settings import Settings
    from storage.api import Bus, Cache, SearchIndex

THREADS = 4
BUSY = 20  # messages per second
HASHES = 2  # passwords checked at once, in all processes


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """What is another thing in one of several processes than in the only one."""

    bus: Bus
    index: SearchIndex
    processes: int = 1
    busy: Callable[[], bool] | None = None  # whether much mail arrives, anywhere
    counted: Callable[[], Awaitable[Counted]] = counted_here
    grace: int = 0  # seconds for which another process may apply what it accepted


@dataclasses.dataclass(slots=True)
class Graph:
    """All services over one set of stores."""

    stores: Stores
    clock: Clock
    offload: ThreadOffload
    hashing: ThreadOffload  # apart: each of its threads keeps a hash's memory
    resolver: CachingResolver
    changes: Changes
    accounts: Accounts
    authenticator: Authenticator
    mailboxes: Mailboxes
    messages: Messages
    identities: Identities
    submissions: Submissions
    index: SearchIndex
    search: Search
    cache: Cache
    indexer: Indexer
    queue: MailQueue
    acceptances: Acceptances
    deliver: Deliver
    receive: Receive
    submission: Submission
    router: Router
    runner: QueueRunner
    pruning: Pruning
    collector: Collector
    upkeep: Upkeep
    counted: Callable[[], Awaitable[Counted]]
    nodes: bool  # other nodes may work on the same databases

    async def recover(self) -> None:
        """Finish what a crash left, before anything is served."""
        await self.accounts.recover()

    def apply(self, settings: Settings) -> None:
        """Take over new settings of policy, limits, routes and schedule."""
        self.receive.policy = policy(settings, self.resolver, self.offload)
        self.submission.limits = limits(settings)
        self.router.settings = routes(settings)
        self.runner.settings = schedule(settings)
        self.deliver.give_up = settings.outbound.give_up

    def beside(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return what runs in each process, by name."""
        return {"directory": self.stores.directory.watch}

    def background(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return what runs in one process, by name; of some of it, in one of all nodes.

        Each node indexes for itself: the words lie beside it.
        """
        once = {
            "acceptances": lambda: self.acceptances.run(self.deliver),
            "queue": self.runner.run,
            "pruning": self.pruning.watch,
            "collector": self.collector.watch,
        }
        return {
            "figures": lambda: watch_queue(self.queue, self.clock, self.counted),
            "health": lambda: watch(self.stores.databases),
            "indexer": self.indexer.run,
        } | {name: self._led(name, work) for name, work in once.items()}

    def _led(
        self, name: str, work: Callable[[], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Return work that is done while this node holds its lease in the queue."""
        if not self.nodes:
            return work
        return lambda: Leader(self.stores.queue_db, name, self.clock).run(work)

    def checks(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Return what ``/readyz`` asks."""
        return {
            "directory": lambda: self.stores.directory.refresh(now=True),
            "queue": self.queue.stats,
            "shards": lambda: shards_that_fail(self.stores.shard_dbs),
        }

    async def close(self) -> None:
        """Finish notes of what was applied, end helpers."""
        await self.runner.drain()
        await self.acceptances.close()
        await self.index.close()
        await self.resolver.close()
        self.hashing.close()
        self.offload.close()


def busy(count: Callable[[], int], clock: Clock) -> Callable[[], bool]:
    """Return a function that says if much mail arrives just now, by a growing count.

    Indexing then waits, and searches look at what is not indexed themselves.
    """
    since, before, much = clock.monotonic(), 0, False

    def asked() -> bool:
        nonlocal since, before, much
        elapsed = clock.monotonic() - since
        if elapsed >= 1:
            puts = count()
            much = (puts - before) / elapsed > BUSY
            since, before = clock.monotonic(), puts
        return much

    return asked


def routes(settings: Settings) -> RouteSettings:
    """Return how hosts are found."""
    outbound = settings.outbound
    return RouteSettings(
        settings.server.hostname,
        outbound.port,
        outbound.smarthost,
        outbound.allow_loopback,
    )


def schedule(settings: Settings) -> QueueSettings:
    """Return when the queue tries and gives up."""
    outbound = settings.outbound
    return QueueSettings(
        retry_min=outbound.retry_min,
        retry_max=outbound.retry_max,
        delay_notice=outbound.delay_notice,
        concurrency=outbound.concurrency,
        per_destination=outbound.per_destination,
        drain=settings.server.drain,
    )


def limits(settings: Settings) -> SubmissionLimits:
    """Return the bounds of submitted messages."""
    inbound = settings.inbound
    return SubmissionLimits(inbound.max_message_size, inbound.max_recipients)


def policy(settings: Settings, resolver: Resolver, offload: ThreadOffload) -> Context:
    """Return what arriving mail is judged with."""
    inbound = settings.inbound
    rules = InboundPolicy(
        spf=inbound.spf,
        dkim=inbound.dkim,
        dmarc=inbound.dmarc,
        iprev=inbound.iprev,
        dnsbl=inbound.dnsbl,
        spf_fail=inbound.spf_fail,
        accept_temperror=inbound.accept_temperror,
    )
    return Context(resolver, offload, rules)


def alone(settings: Settings) -> Parts:
    """Return the parts of a process that is the only one."""
    return Parts(
        open_bus(settings.storage.bus),
        open_search(settings.storage.search),
    )


def _authenticator(
    settings: Settings, stores: Stores, clock: Clock, parts: Parts
) -> tuple[Authenticator, ThreadOffload]:
    """Return who checks passwords, and the threads for that."""
    hashes = max(1, HASHES // parts.processes)
    threads = ThreadOffload(hashes, "hashing")
    checks = Authenticator(
        stores.directory,
        clock,
        threads,
        hasher=hasher(settings),
        limits=Limits(hashes=hashes),
    )
    return checks, threads


def _changes(stores: Stores, parts: Parts) -> Changes:
    """Return the announcements; from other processes they may be lost."""

    async def look(account: int) -> int:
        return (await stores.shards.read(system(account), units.state, None)).modseq

    return Changes(parts.bus, look if parts.processes > 1 else None)


def _indexer(stores: Stores, clock: Clock, parts: Parts) -> Indexer:
    """Return what feeds the index, while not much else is to do."""
    much = parts.busy or busy(lambda: stores.blobs.stats().puts, clock)
    return Indexer(stores.shards, parts.index, stores.shard_dbs, clock, busy=much)


def _kernel(
    settings: Settings,
    stores: Stores,
    clock: Clock,
    changes: Changes,
    offload: ThreadOffload,
) -> Kernel:
    """Return what every message that arrives needs."""
    return Kernel(
        stores.shards,
        stores.blobs,
        stores.directory,
        changes,
        clock,
        offload,
        settings.server.hostname,
        f"{settings.server.data_dir}/spool",
    )


def build(
    settings: Settings, stores: Stores, clock: Clock, parts: Parts | None = None
) -> Graph:
    """Build every service."""
    parts = parts or alone(settings)
    offload = ThreadOffload(THREADS, "offload")
    authenticator, hashing = _authenticator(settings, stores, clock, parts)
    resolver = CachingResolver(
        settings.dns.servers, clock=clock, timeout=settings.dns.timeout
    )
    store, blobs, index = stores.shards, stores.blobs, parts.index

    changes = _changes(stores, parts)
    messages = Messages(store, blobs, changes, clock)
    queue = MailQueue(stores.queue_db)
    acceptances = Acceptances(queue, blobs, clock, offload, grace=parts.grace)
    deliver = Deliver(
        store, acceptances, stores.directory, changes, give_up=settings.outbound.give_up
    )
    kernel = _kernel(settings, stores, clock, changes, offload)
    receive = Receive(kernel, deliver, policy(settings, resolver, offload))
    people = accounts(settings, stores, offload, clock, index.drop)
    router = Router(resolver, clock, routes(settings))
    relay = Relay(router, SmtpDialer(TcpConnector(), settings.server.hostname))

    return Graph(
        stores=stores,
        clock=clock,
        offload=offload,
        hashing=hashing,
        resolver=resolver,
        changes=changes,
        accounts=people,
        authenticator=authenticator,
        mailboxes=Mailboxes(store, changes),
        messages=messages,
        identities=Identities(store, changes),
        submissions=Submissions(store, changes),
        index=index,
        search=Search(store, index, messages, offload),
        cache=open_cache(settings.storage.cache),
        indexer=_indexer(stores, clock, parts),
        queue=queue,
        acceptances=acceptances,
        deliver=deliver,
        receive=receive,
        submission=Submission(receive, limits(settings)),
        router=router,
        runner=QueueRunner(queue, relay, receive, schedule(settings)),
        pruning=Pruning(stores.shard_dbs, queue, clock),
        collector=Collector(
            stores.shard_dbs, queue, blobs, clock, missing=stores.directory.elsewhere
        ),
        counted=parts.counted,
        nodes=for_nodes(settings.storage.queue),
        upkeep=Upkeep(stores.directory, store, queue, blobs, changes, index.drop),
    )
