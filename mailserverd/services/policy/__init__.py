"""Checks at arrival: one file each, in the order of the tuple below.

``evaluate`` runs them and adds up a ``Verdict``.  DNS failures never make anything
pass: where one hides whether a message is to be refused, the message is deferred, or
accepted and marked if the settings say so.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from auth.mail.results import build
from mailserverd.core.errors import Kind
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter
from mailserverd.services.arrival import (
    Action,
    Arrival,
    Check,
    Context,
    Evidence,
    Finding,
    InboundPolicy,
    Verdict,
)
from mailserverd.services.policy import dkim, dmarc, dnsbl, iprev, spf, spf_fail

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence


__all__ = [
    "Action",
    "Arrival",
    "Context",
    "InboundPolicy",
    "Verdict",
    "evaluate",
]

# The checks of one stage do not need one another and run at the same time; a later
# stage sees the evidence of the earlier ones.
STAGES: tuple[tuple[Check, ...], ...] = (
    (dnsbl.CHECK, iprev.CHECK, spf.CHECK, dkim.CHECK),
    (dmarc.CHECK,),
    (spf_fail.CHECK,),
)

KINDS = {Action.REJECT: Kind.POLICY, Action.DEFER: Kind.TEMPORARY_POLICY}
VERDICTS = counter("policy_verdicts", "Messages checked at arrival", ("action",))

log = get_logger("policy")


async def evaluate(
    arrival: Arrival, context: Context, stages: Sequence[Sequence[Check]] = STAGES
) -> Verdict:
    """Run the enabled checks; never raises for what a message or DNS contains."""
    evidence = Evidence()
    findings: list[Finding] = []
    for stage in stages:
        runs = [
            _run(check, arrival, context, evidence)
            for check in stage
            if check.enabled(context.settings)
        ]
        findings += await _together(runs)
    return _add_up(arrival, context.settings, findings)


async def _together(runs: list[Coroutine[None, None, Finding]]) -> list[Finding]:
    """Run all at the same time: the last one here, which saves a task."""
    if not runs:
        return []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run) for run in runs[:-1]]
        last = await runs[-1]
    return [*(task.result() for task in tasks), last]


async def _run(
    check: Check, arrival: Arrival, context: Context, evidence: Evidence
) -> Finding:
    try:
        return await check.run(arrival, context, evidence)
    except Exception:  # a bug in a check must neither lose the message nor let it pass
        log.exception("check-bug", check=check.name)
        return Finding((), Action.DEFER, "a check could not be made")


def _add_up(
    arrival: Arrival, settings: InboundPolicy, findings: list[Finding]
) -> Verdict:
    results = tuple(result for finding in findings for result in finding.results)
    counted = [
        finding
        for finding in findings
        if not (settings.accept_temperror and finding.action is Action.DEFER)
    ]
    worst = max(counted, key=lambda finding: finding.action, default=Finding())
    VERDICTS.labels(worst.action.name.lower()).inc()
    if worst.action is not Action.ACCEPT:
        log.info(
            "policy-verdict",
            action=worst.action.name.lower(),
            reason=worst.reason,
            client=arrival.peer.address,
            sender=arrival.envelope.reverse_path,
        )
    return Verdict(
        worst.action,
        KINDS.get(worst.action),
        worst.reason,
        results,
        build(arrival.authserv_id, results),
    )
