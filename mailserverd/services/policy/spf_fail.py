"""What an SPF fail does where no DMARC record speaks (``spf_fail = "reject"``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailserverd.services.arrival import Action, Check, Finding

if TYPE_CHECKING:
    from auth.mail.spf import SpfResult
    from mailserverd.services.arrival import Arrival, Context, Evidence, InboundPolicy


async def run(arrival: Arrival, _: Context, evidence: Evidence) -> Finding:
    """Refuse a fail (RFC 7208 section 8.4), defer where DNS hides one."""
    found, dmarc = evidence.spf, evidence.dmarc
    if found is None or (dmarc is not None and dmarc.policy_domain):
        return Finding()
    if found.result == "fail":
        return Finding((), Action.REJECT, _refusal(found, arrival.peer.address))
    if found.result == "temperror":
        reason = f"SPF of {found.domain} could not be checked"
        return Finding((), Action.DEFER, reason)
    return Finding()


def _refusal(found: SpfResult, address: str) -> str:
    reason = f"SPF: {found.domain} does not send mail from {address}"
    return f"{reason} ({found.explanation})" if found.explanation else reason


def _enabled(settings: InboundPolicy) -> bool:
    return settings.spf and settings.spf_fail == "reject"


CHECK = Check("spf_fail", _enabled, run)
