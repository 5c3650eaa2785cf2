"""DKIM (RFC 6376) of every signature; what it means is left to DMARC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auth.mail.dkim import DkimResult, verify
from auth.mail.results import MethodResult
from mailserverd.services.arrival import Check, Finding

if TYPE_CHECKING:
    from mailserverd.services.arrival import Arrival, Context, Evidence


async def run(arrival: Arrival, context: Context, evidence: Evidence) -> Finding:
    """Verify and mark; a bad signature is as good as none (section 6.1)."""
    found = await verify(
        context.resolver, arrival.message, arrival.now, offload=context.offload
    )
    evidence.dkim = tuple(found)
    return Finding(tuple(map(_mark, found)) or (MethodResult("dkim", "none"),))


def _mark(found: DkimResult) -> MethodResult:
    return MethodResult(
        "dkim",
        found.result,
        reason=found.reason,
        comment="test key" if found.testing else "",
        properties=(
            ("header.d", found.domain),
            ("header.s", found.selector),
            ("header.a", found.algorithm),
            ("header.b", found.header_b),
        ),
    )


CHECK = Check("dkim", lambda settings: settings.dkim, run)
