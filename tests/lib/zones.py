"""A resolver that answers from a dict: for conformance suites that list their zones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.core.ports import DnsAnswer, DnsStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

FAILED = DnsAnswer(DnsStatus.FAILED, error="timed out")
MAX_CHAIN = 10


class ZoneResolver:
    """Answers from ``(name, type) -> records`` or ``-> DnsAnswer``; follows CNAMEs.

    A name that is there with other types is NO_DATA, else NO_NAME.  ``asked`` lists
    what was asked for.
    """

    def __init__(self, records: Mapping[tuple[str, str], object]) -> None:
        self.records = {(n.lower(), t): r for (n, t), r in records.items()}
        self.names = {name for name, _ in self.records}
        self.asked: list[tuple[str, str]] = []

    async def query(self, name: str, rdtype: str) -> DnsAnswer:
        self.asked.append((name, rdtype))
        name = name.lower().removesuffix(".")
        for _ in range(MAX_CHAIN):
            found = self.records.get((name, rdtype))
            if isinstance(found, DnsAnswer):
                return found
            if isinstance(found, list | tuple):
                return DnsAnswer(DnsStatus.FOUND, tuple(found))
            alias = self.records.get((name, "CNAME"))
            if not isinstance(alias, list | tuple):
                break
            name = str(alias[0]).lower()
        status = DnsStatus.NO_DATA if name in self.names else DnsStatus.NO_NAME
        return DnsAnswer(status)
