"""Reverse DNS of the client (iprev, RFC 8601 section 3): marked, never decisive."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

from auth.mail.results import MethodResult
from mailserverd.core.ports import DnsStatus
from mailserverd.services.arrival import Check, Finding

if TYPE_CHECKING:
    from mailserverd.core.ports import Resolver
    from mailserverd.services.arrival import Arrival, Context, Evidence

TIME_LIMIT = 5.0  # seconds
MAX_NAMES = 5


async def run(arrival: Arrival, context: Context, _: Evidence) -> Finding:
    """Mark whether one of the client's names leads back to its address."""
    address = arrival.peer.address
    try:
        async with asyncio.timeout(TIME_LIMIT):
            result, name = await _check(context.resolver, address)
    except TimeoutError:
        result, name = "temperror", ""
    except ValueError:
        return Finding()
    properties = (("policy.iprev", address),)
    return Finding((MethodResult("iprev", result, "", name, properties),))


async def _check(resolver: Resolver, text: str) -> tuple[str, str]:
    address = ipaddress.ip_address(text)
    pointers = await resolver.query(address.reverse_pointer, "PTR")
    if pointers.status is DnsStatus.FAILED:
        return "temperror", ""
    if not pointers.records:
        return "permerror", "no name"
    result = "fail"
    for name in map(str, pointers.records[:MAX_NAMES]):
        found = await resolver.query(name, "A" if address.version == 4 else "AAAA")
        if any(ipaddress.ip_address(str(a)) == address for a in found.records):
            return "pass", name
        if found.status is DnsStatus.FAILED:
            result = "temperror"
    return result, ""


CHECK = Check("iprev", lambda settings: settings.iprev, run)
