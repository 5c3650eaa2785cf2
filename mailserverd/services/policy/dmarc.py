"""DMARC (RFC 9989): the policy of the domain in From, applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auth.mail.dmarc import TOO_MANY, DmarcResult, evaluate
from auth.mail.results import MethodResult
from mailserverd.services.arrival import Action, Check, Finding

if TYPE_CHECKING:
    from mailserverd.services.arrival import Arrival, Context, Evidence

ACTIONS = {"reject": Action.REJECT, "quarantine": Action.JUNK}


async def run(arrival: Arrival, context: Context, evidence: Evidence) -> Finding:
    """Refuse or file as the domain asks; defer what DNS keeps from being decided."""
    domains = [address.rpartition("@")[2] for address in arrival.from_addresses]
    found = await evaluate(context.resolver, domains, evidence.spf, evidence.dkim)
    evidence.dmarc = found
    marks = (
        MethodResult(
            "dmarc",
            found.result,
            reason=found.reason,
            properties=(
                ("header.from", found.domain),
                ("policy.dmarc", found.policy if found.policy_domain else ""),
            ),
        ),
    )
    action = _action(found)
    return Finding(marks, action, _reason(found) if action else "")


def _action(found: DmarcResult) -> Action:
    if found.undecided:
        return Action.DEFER
    if found.reason == TOO_MANY:  # a way around every policy (section 11.5)
        return Action.REJECT
    if found.result == "fail":
        return ACTIONS.get(found.policy, Action.ACCEPT)
    return Action.ACCEPT


def _reason(found: DmarcResult) -> str:
    if found.undecided:
        return f"DMARC of {found.domain} could not be checked: {found.reason}"
    if found.reason == TOO_MANY:
        return found.reason
    policy = f"DMARC policy of {found.policy_domain} (p={found.policy})"
    return f"{policy} for mail from {found.domain}: {found.reason}"


CHECK = Check("dmarc", lambda settings: settings.dmarc, run)
