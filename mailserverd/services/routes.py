"""Where mail for a domain goes: MX records, their addresses, and which we refuse.

RFC 5321 section 5 (preference, implicit MX, loops), RFC 7505 (null MX).
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
from typing import TYPE_CHECKING, Any

from mailserverd.core.names import a_labels
from mailserverd.core.ports import DnsStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailserverd.core.ports import Clock, DnsAnswer, Resolver

MAX_NAMES = 10  # MX hosts looked at
MAX_HOSTS = 12  # addresses tried
SMTP_PORT = 25


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """One address to connect to; ``name`` is for logs and for TLS."""

    name: str
    address: str
    port: int = SMTP_PORT


class NoRoute(Exception):
    """There is nowhere to go: a reply code, an enhanced status code and a text."""

    def __init__(self, code: int, status: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.status = status
        self.text = text


@dataclasses.dataclass(frozen=True, slots=True)
class RouteSettings:
    """How routes are found.

    ``smarthost`` ("relay.example.net:587", "[192.0.2.1]:25") gets everything.  Unless
    ``allow_loopback``, addresses that are not public are not connected to: whoever
    writes MX records could otherwise make us speak to our own network.
    """

    hostname: str
    port: int = SMTP_PORT
    smarthost: str = ""
    allow_loopback: bool = False


class Router:
    """Finds the hosts for a domain."""

    def __init__(
        self, resolver: Resolver, clock: Clock, settings: RouteSettings
    ) -> None:
        self._resolver = resolver
        self._clock = clock
        self.settings = settings

    async def hosts(self, domain: str) -> list[Host]:
        """Return the hosts in the order in which they are to be tried; NoRoute.

        ``domain`` in A-labels, or an address literal.
        """
        if self.settings.smarthost:
            return await self._smarthost()
        port = self.settings.port
        if domain.startswith("["):
            address = _literal(domain)
            if not self._allowed(address):
                raise NoRoute(550, "5.4.4", f"{domain} is not a public address")
            return [Host(address, address, port)]
        names = await self._names(domain)
        return await self._resolve(names, port, self.settings.allow_loopback)

    async def _smarthost(self) -> list[Host]:
        name, _, port = self.settings.smarthost.rpartition(":")
        if not name:
            name, port = port, ""
        number = int(port or SMTP_PORT)
        if name.startswith("["):
            address = _literal(name)
            return [Host(address, address, number)]
        return await self._resolve([a_labels(name) or name], number, True)

    async def _names(self, domain: str) -> list[str]:
        """Return host names by preference, equal ones in random order."""
        answer = await self._resolver.query(domain, "MX")
        if answer.status is DnsStatus.FAILED:
            raise NoRoute(451, "4.4.3", f"DNS look-up of {domain} failed")
        if answer.status is DnsStatus.NO_NAME:
            raise NoRoute(550, "5.1.2", f"domain {domain} does not exist")
        if answer.status is DnsStatus.NO_DATA:
            return [domain]  # implicit MX
        records: Sequence[Any] = answer.records
        if all(name == "" for _, name in records):
            raise NoRoute(556, "5.1.10", f"domain {domain} takes no mail (null MX)")
        records = self._before_us(domain, [r for r in records if r[1]])
        ordered = sorted(records, key=lambda r: (r[0], self._clock.random()))
        return [name for _, name in ordered[:MAX_NAMES]]

    def _before_us(
        self, domain: str, records: list[tuple[int, str]]
    ) -> list[tuple[int, str]]:
        """Leave out ourselves, and whatever is not nearer to the domain than we."""
        ours = [p for p, name in records if name == self.settings.hostname]
        if not ours:
            return records
        nearer = [r for r in records if r[0] < min(ours)]
        if not nearer:
            raise NoRoute(554, "5.4.6", f"mail for {domain} loops back to this server")
        return nearer

    async def _resolve(
        self, names: Sequence[str], port: int, any_address: bool
    ) -> list[Host]:
        answers = await asyncio.gather(
            *(self._resolver.query(n, t) for n in names for t in ("AAAA", "A"))
        )
        hosts: list[Host] = []
        refused = False
        for index, answer in enumerate(answers):
            name = names[index // 2]
            for address in map(str, answer.records):
                if any_address or self._allowed(address):
                    hosts.append(Host(name, address, port))
                else:
                    refused = True
        if not hosts:
            raise _no_hosts(names, answers, refused)
        return _families_in_turn(hosts)[:MAX_HOSTS]

    def _allowed(self, address: str) -> bool:
        return self.settings.allow_loopback or ipaddress.ip_address(address).is_global


def _no_hosts(
    names: Sequence[str], answers: Sequence[DnsAnswer], refused: bool
) -> NoRoute:
    listed = ", ".join(names[:3])
    if any(a.status is DnsStatus.FAILED for a in answers):
        return NoRoute(451, "4.4.3", f"DNS look-up of {listed} failed")
    if refused:
        return NoRoute(550, "5.4.4", f"{listed} has no public address")
    return NoRoute(550, "5.4.4", f"{listed} has no address")


def _families_in_turn(hosts: list[Host]) -> list[Host]:
    """Keep the order of names; of one name, try both address families early."""
    ordered: list[Host] = []
    for name in dict.fromkeys(host.name for host in hosts):
        of_name = [host for host in hosts if host.name == name]
        six = [host for host in of_name if ":" in host.address]
        four = [host for host in of_name if ":" not in host.address]
        while six or four:
            ordered += six[:1] + four[:1]
            six, four = six[1:], four[1:]
    return ordered


def _literal(text: str) -> str:
    """Return the address in an address literal (RFC 5321 section 4.1.3); NoRoute."""
    inside = text.strip("[]")
    if inside[:5].lower() == "ipv6:":
        inside = inside[5:]
    try:
        return str(ipaddress.ip_address(inside))
    except ValueError:
        raise NoRoute(550, "5.1.2", f"{text} is not an address") from None
