"""DNS block lists (RFC 5782): refuse a client that a configured zone lists."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

from mailserverd.core.ports import DnsStatus
from mailserverd.services.arrival import Action, Check, Finding

if TYPE_CHECKING:
    from mailserverd.core.ports import Resolver
    from mailserverd.services.arrival import Arrival, Context, Evidence

TIME_LIMIT = 5.0  # seconds; a list that is slower is ignored
LISTED = ipaddress.IPv4Network("127.0.0.0/8")
REFUSING = ipaddress.IPv4Network("127.255.255.0/24")  # the zone will not serve us


async def run(arrival: Arrival, context: Context, _: Evidence) -> Finding:
    """Ask all zones at once; a zone that does not answer lists nobody."""
    labels = _reversed(arrival.peer.address)
    if not labels:
        return Finding()
    zones = context.settings.dnsbl
    listed = await asyncio.gather(
        *(_lists(context.resolver, f"{labels}.{zone}") for zone in zones)
    )
    for zone, found in zip(zones, listed, strict=True):
        if found:
            reason = f"client {arrival.peer.address} is listed by {zone}"
            return Finding((), Action.REJECT, reason)
    return Finding()


def _reversed(address: str) -> str:
    """Return octets or nibbles in reverse (sections 2.1 and 2.4), "" if no address."""
    try:
        pointer = ipaddress.ip_address(address).reverse_pointer
    except ValueError:
        return ""
    return pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


async def _lists(resolver: Resolver, name: str) -> bool:
    try:
        async with asyncio.timeout(TIME_LIMIT):
            answer = await resolver.query(name, "A")
    except TimeoutError:
        return False
    if answer.status is not DnsStatus.FOUND:
        return False
    found = [ipaddress.ip_address(str(record)) for record in answer.records]
    return any(a in LISTED and a not in REFUSING for a in found)


CHECK = Check("dnsbl", lambda settings: bool(settings.dnsbl), run)
