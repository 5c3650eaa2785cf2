"""The states of a connection and every transition between them, in one table.

RFC 9051 section 3; a command that needs a state names it in the registry.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a connection stands (RFC 9051 section 3)."""

    NOT_AUTHENTICATED = "not authenticated"
    AUTHENTICATED = "authenticated"
    SELECTED = "selected"
    LOGOUT = "logout"


class Event(enum.Enum):
    """What moves a connection from state to state."""

    LOGIN = "login"  # LOGIN or AUTHENTICATE succeeded
    SELECT = "select"  # SELECT or EXAMINE succeeded
    UNSELECT = "unselect"  # CLOSE, UNSELECT, or SELECT before its success
    LOGOUT = "logout"  # LOGOUT, BYE, or the peer is gone


ANY = frozenset(set(State) - {State.LOGOUT})
NOT_AUTHENTICATED = frozenset({State.NOT_AUTHENTICATED})
AUTHENTICATED = frozenset({State.AUTHENTICATED, State.SELECTED})
SELECTED = frozenset({State.SELECTED})

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NOT_AUTHENTICATED, Event.LOGIN): State.AUTHENTICATED,
    (State.AUTHENTICATED, Event.SELECT): State.SELECTED,
    (State.SELECTED, Event.UNSELECT): State.AUTHENTICATED,
    (State.NOT_AUTHENTICATED, Event.LOGOUT): State.LOGOUT,
    (State.AUTHENTICATED, Event.LOGOUT): State.LOGOUT,
    (State.SELECTED, Event.LOGOUT): State.LOGOUT,
    (State.LOGOUT, Event.LOGOUT): State.LOGOUT,
}


def advance(state: State, event: Event) -> State:
    """Return the next state; KeyError for what the table does not know (a bug)."""
    return TRANSITIONS[state, event]
