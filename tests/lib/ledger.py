"""What mail must be where, from what was asked of a daemon and what it answered.

What was answered holds.  What was asked last and not answered may hold or not: a
doubt, until somebody looks.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib

Key = tuple[str, str]  # token of the message, account


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """Where a message is, and its flags as IMAP names them."""

    mailbox: str = "INBOX"
    flags: frozenset[str] = frozenset()

    @property
    def deleted(self) -> bool:
        """True for what JMAP does not show."""
        return "\\Deleted" in self.flags


GONE: State | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A message as it was read."""

    state: State
    raw: bytes


class Ledger:
    """The states of all messages, over many crashes."""

    def __init__(self) -> None:
        self.bodies: dict[str, str] = {}  # SHA-256 by token
        self.states: dict[Key, State | None] = {}  # answered
        self.doubts: dict[Key, State | None] = {}  # asked
        self.uids: dict[Key, int] = {}  # where the answers told them
        self.promised: set[str] = set()  # to another server
        self.asked: set[str] = set()  # the same, perhaps not answered
        self.answers: collections.Counter[str] = collections.Counter()  # by way
        self.heard = asyncio.Event()  # of an answer

    def body(self, token: str, body: bytes) -> None:
        """Note what a message's body is, before it is sent."""
        self.bodies[token] = hashlib.sha256(body).hexdigest()

    def ask(self, keys: list[Key], state: State | None) -> None:
        """Something is about to be asked that leads to this state."""
        self.doubts |= dict.fromkeys(keys, state)

    def answered(self, keys: list[Key], way: str) -> None:
        """It was done."""
        self.answers[way] += 1
        self.heard.set()
        for key in keys:
            self.states[key] = self.doubts.pop(key)

    def missing(self, found: dict[Key, list[Found]]) -> list[Key]:
        """Return what was promised and is not there."""
        return [
            key
            for key, state in self.states.items()
            if state and key not in found and self.doubts.get(key, state) is not GONE
        ]

    def check(self, found: dict[Key, list[Found]]) -> list[str]:
        """Return what is wrong; where nothing is, doubts are settled by what is."""
        faults = [f"{key}: lost" for key in self.missing(found)]
        for key, copies in found.items():
            faults += [f"{key}: {fault}" for fault in self._wrong(key, copies)]
        for key in [key for key in self.doubts if key in found or key in self.states]:
            self.states[key] = found[key][0].state if key in found else GONE
            del self.doubts[key]
        return faults

    def _wrong(self, key: Key, copies: list[Found]) -> list[str]:
        if key not in self.states and key not in self.doubts:
            return ["nobody sent it"]
        if len(copies) > 1:
            return [f"there {len(copies)} times: {[c.state for c in copies]}"]
        (copy,) = copies
        allowed = [known[key] for known in (self.states, self.doubts) if key in known]
        faults = []
        if copy.state not in allowed:
            faults.append(f"{copy.state}, not {' or '.join(map(str, allowed))}")
        body = copy.raw.partition(b"\r\n\r\n")[2]
        if hashlib.sha256(body).hexdigest() != self.bodies[key[0]]:
            faults.append(f"another body: {body[:200]!r}")
        return faults
