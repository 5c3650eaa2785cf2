"""SPF (RFC 7208) of the reverse-path, or of HELO for the null sender."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auth.mail.results import MethodResult
from auth.mail.spf import check_host
from mailserverd.services.arrival import Check, Finding

if TYPE_CHECKING:
    from mailserverd.services.arrival import Arrival, Context, Evidence


async def run(arrival: Arrival, context: Context, evidence: Evidence) -> Finding:
    """Mark the result; what it decides is for DMARC and ``spf_fail``."""
    sender, helo = arrival.envelope.reverse_path, arrival.peer.helo
    found = await check_host(context.resolver, arrival.peer.address, sender, helo)
    evidence.spf = found
    identity = "smtp.helo" if found.identity == "helo" else "smtp.mailfrom"
    marks = (
        MethodResult(
            "spf",
            found.result,
            comment=found.problem or found.explanation,
            properties=((identity, sender or helo),),
        ),
    )
    return Finding(marks)


CHECK = Check("spf", lambda settings: settings.spf, run)
