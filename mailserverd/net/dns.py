"""The resolver: dnspython's asyncio stub behind a cache that respects TTLs.

A hit costs about a microsecond, identical questions in flight are asked once, and
whatever goes wrong is an answer (``DnsStatus.FAILED``), never an exception.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.ttl

from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter, histogram
from mailserverd.core.names import a_labels
from mailserverd.core.ports import DnsAnswer, DnsStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mailserverd.core.ports import Clock

RESOLV_CONF = "/etc/resolv.conf"
RESOLV_CONF_CHECK = 60.0  # seconds between looks at its modification time
MAX_TTL = 86_400.0
MAX_NEGATIVE_TTL = 10_800.0  # RFC 2308 section 5 suggests one to three hours
FAILURE_TTL = 5.0  # RFC 9520 section 3.2: failures are cached, 1 s to 5 min
EDNS_PAYLOAD = 1232  # fits every path unfragmented: larger answers come by TCP
CACHE_BYTES = 16 << 20
ENTRY_COST = 400  # octets of objects around an answer without records
WAITING_PER_SLOT = 8  # look-ups that may wait for each one under way

LOOKUPS = counter("dns_lookups", "Questions sent to DNS servers", ("status",))
SECONDS = histogram("dns_seconds", "Time until an answer came")

log = get_logger("dns")

_Key = tuple[str, str]


class _Entry(NamedTuple):
    expires: float  # monotonic
    answer: DnsAnswer
    cost: int


class CachingResolver:
    """Implements ``mailserverd.core.ports.Resolver``.

    ``servers`` are ``"192.0.2.1"``, ``"127.0.0.1:5353"``, ``"[::1]:53"``; none means
    the system's.  ``timeout`` bounds a whole look-up (all servers, UDP and TCP,
    waiting for a free slot included), ``attempt_timeout`` one try at one server, in
    seconds.  At most ``max_inflight`` questions are under way at once.
    ValueError for a server that is not an address.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        clock: Clock,
        timeout: float = 10.0,
        attempt_timeout: float = 2.0,
        max_inflight: int = 256,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._servers = tuple(parse_server(server) for server in servers)
        self._monotonic = clock.monotonic
        self._timeout = timeout
        self._attempt_timeout = attempt_timeout
        self._slots = asyncio.Semaphore(max_inflight)
        self._max_tasks = max_inflight * (1 + WAITING_PER_SLOT)
        self._tasks: dict[_Key, asyncio.Task[DnsAnswer]] = {}
        self._cache: collections.OrderedDict[_Key, _Entry] = collections.OrderedDict()
        self._cache_bytes = cache_bytes
        self._used = 0
        self._stub: dns.asyncresolver.Resolver | None = None
        self._stub_mtime = 0.0
        self._stub_checked = float("-inf")

    async def query(self, name: str, rdtype: str) -> DnsAnswer:
        """Look up ``name`` (A-label or UTF-8); see ``DnsAnswer`` for the shapes.

        TLSA is ``(usage, selector, matching type, bytes)`` and SRV ``(priority,
        weight, port, target)``.  A name that cannot exist is ``NO_NAME``.
        """
        key = (name, rdtype)
        found = self._cached(key)
        if found is not None:
            return found
        ascii_name = a_labels(name)
        if ascii_name is None:
            return DnsAnswer(DnsStatus.NO_NAME, error="not a domain name")
        if ascii_name != name:
            key = (ascii_name, rdtype)
            found = self._cached(key)
            if found is not None:
                return found
        task = self._tasks.get(key)
        if task is None:
            if len(self._tasks) >= self._max_tasks:
                return DnsAnswer(DnsStatus.FAILED, error="too many DNS questions")
            task = asyncio.get_running_loop().create_task(self._lookup(key))
            self._tasks[key] = task
        # Shielded: one caller that gives up does not take the answer from others.
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not task.cancelled() or (caller and caller.cancelling()):
                raise
            return DnsAnswer(DnsStatus.FAILED, error="resolver closed")

    async def close(self) -> None:
        """End what is under way; those who wait get ``FAILED``."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _cached(self, key: _Key) -> DnsAnswer | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        if entry.expires <= self._monotonic():
            self._used -= self._cache.pop(key).cost
            return None
        self._cache.move_to_end(key)
        return entry.answer

    def _keep(self, key: _Key, answer: DnsAnswer, ttl: float) -> None:
        if ttl <= 0:
            return
        cost = ENTRY_COST + 2 * len(key[0]) + sum(map(_cost, answer.records))
        if cost > self._cache_bytes // 4:
            return
        if (old := self._cache.pop(key, None)) is not None:
            self._used -= old.cost
        self._cache[key] = _Entry(self._monotonic() + ttl, answer, cost)
        self._used += cost
        while self._used > self._cache_bytes:
            self._used -= self._cache.popitem(last=False)[1].cost

    async def _lookup(self, key: _Key) -> DnsAnswer:
        started = self._monotonic()
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                answer, ttl = await self._ask(*key)
        except TimeoutError:
            answer, ttl = DnsAnswer(DnsStatus.FAILED, error="timed out"), FAILURE_TTL
        except Exception:  # "never raises" also holds for bugs in the parser
            log.exception("dns-bug", name=key[0], rdtype=key[1])
            answer, ttl = DnsAnswer(DnsStatus.FAILED, error="internal"), FAILURE_TTL
        finally:
            self._tasks.pop(key, None)
        self._keep(key, answer, ttl)
        LOOKUPS.labels(answer.status.value).inc()
        SECONDS.observe(self._monotonic() - started)
        if answer.status is DnsStatus.FAILED:
            log.info("dns-failed", name=key[0], rdtype=key[1], error=answer.error)
        return answer

    async def _ask(self, name: str, rdtype: str) -> tuple[DnsAnswer, float]:
        """Return the answer and for how many seconds it may be kept."""
        try:
            stub = self._get_stub()
            found = await stub.resolve(
                dns.name.Name([*(p.encode() for p in name.split(".")), b""]),
                rdtype,
                raise_on_no_answer=False,
                lifetime=self._timeout,
                search=False,
            )
        except dns.resolver.NXDOMAIN as error:
            return DnsAnswer(DnsStatus.NO_NAME), _nxdomain_ttl(error)
        except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
            text = f"{type(error).__name__}: {error}"[:300]
            return DnsAnswer(DnsStatus.FAILED, error=text), FAILURE_TTL
        ttl = float(found.chaining_result.minimum_ttl)
        secure = bool(found.response.flags & dns.flags.AD)
        if not found.rrset:
            return DnsAnswer(DnsStatus.NO_DATA, authenticated=secure), _negative(ttl)
        shape = _SHAPES.get(found.rdtype, str)
        records = tuple(shape(rdata) for rdata in found.rrset)
        return DnsAnswer(DnsStatus.FOUND, records, secure), min(ttl, MAX_TTL)

    def _get_stub(self) -> dns.asyncresolver.Resolver:
        """Return the stub; the system's configuration is reread when it changed."""
        now = self._monotonic()
        if self._stub is not None and (
            self._servers or now < self._stub_checked + RESOLV_CONF_CHECK
        ):
            return self._stub
        self._stub_checked = now
        if self._servers:
            stub = dns.asyncresolver.Resolver(configure=False)
            stub.nameservers = [
                dns.nameserver.Do53Nameserver(*server) for server in self._servers
            ]
        else:
            mtime = os.stat(RESOLV_CONF).st_mtime
            if self._stub is not None and mtime == self._stub_mtime:
                return self._stub
            stub = dns.asyncresolver.Resolver(RESOLV_CONF)
            self._stub_mtime = mtime
        stub.timeout = self._attempt_timeout
        stub.use_edns(0, 0, EDNS_PAYLOAD)
        # RFC 6840 section 5.7: AD in the question asks for AD in the answer.
        stub.set_flags(dns.flags.RD | dns.flags.AD)
        self._stub = stub
        return stub


def parse_server(text: str) -> tuple[str, int]:
    """Return (address, port) of ``"127.0.0.1:5353"``, ``"[::1]:53"`` or ``"::1"``.

    ValueError when it is not an IP address with an optional port.
    """
    host, port = text, "53"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or rest[:1] not in {"", ":"}:
            raise ValueError(f"not an address: {text}")
        port = rest[1:] or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    number = int(port)
    if not 0 < number < 1 << 16:
        raise ValueError(f"not a port: {port}")
    return str(ipaddress.ip_address(host)), number


def _host(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if len(name) > 1 else ""


_SHAPES: dict[dns.rdatatype.RdataType, Callable[[Any], object]] = {
    dns.rdatatype.A: lambda r: r.address,
    dns.rdatatype.AAAA: lambda r: r.address,
    dns.rdatatype.MX: lambda r: (r.preference, _host(r.exchange)),
    dns.rdatatype.TXT: lambda r: b"".join(r.strings),
    dns.rdatatype.PTR: lambda r: _host(r.target),
    dns.rdatatype.CNAME: lambda r: _host(r.target),
    dns.rdatatype.NS: lambda r: _host(r.target),
    dns.rdatatype.TLSA: lambda r: (r.usage, r.selector, r.mtype, r.cert),
    dns.rdatatype.SRV: lambda r: (r.priority, r.weight, r.port, _host(r.target)),
}


def _cost(record: object) -> int:
    if isinstance(record, bytes | str):
        return 64 + len(record)
    return 64 + sum(map(_cost, record)) if isinstance(record, tuple) else 32


def _negative(ttl: float) -> float:
    """Bound a negative TTL; without SOA there is none (RFC 2308 section 5)."""
    return FAILURE_TTL if ttl >= dns.ttl.MAX_TTL else min(ttl, MAX_NEGATIVE_TTL)


def _nxdomain_ttl(error: dns.resolver.NXDOMAIN) -> float:
    responses: dict[object, Any] = error.kwargs["responses"]
    try:
        chain = next(iter(responses.values())).resolve_chaining()
    except (dns.exception.DNSException, StopIteration):
        return FAILURE_TTL
    return _negative(float(chain.minimum_ttl))
