"""IMAP base commands (RFC 9051 with what it took in): one file each, one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auth.people import sasl
from protocols.imap import columns, searchkeys
from protocols.imap.commands import (
    append,
    authenticate,
    capability,
    check,
    close,
    copy,
    create,
    delete,
    enable,
    expunge,
    fetch,
    idle,
    list,
    login,
    logout,
    lsub,
    move,
    namespace,
    noop,
    rename,
    search,
    select,
    starttls,
    status,
    store,
    subscribe,
    unselect,
)
from protocols.imap.extension import Extension

if TYPE_CHECKING:
    from protocols.imap.extension import Context

COMMANDS = (
    capability.COMMAND,
    noop.COMMAND,
    logout.COMMAND,
    starttls.COMMAND,
    login.COMMAND,
    authenticate.COMMAND,
    enable.COMMAND,
    select.SELECT,
    select.EXAMINE,
    create.COMMAND,
    delete.COMMAND,
    rename.COMMAND,
    subscribe.SUBSCRIBE,
    subscribe.UNSUBSCRIBE,
    list.COMMAND,
    lsub.COMMAND,
    namespace.COMMAND,
    status.COMMAND,
    append.COMMAND,
    idle.COMMAND,
    check.COMMAND,
    close.COMMAND,
    unselect.COMMAND,
    expunge.EXPUNGE,
    expunge.UID_EXPUNGE,
    search.SEARCH,
    search.UID_SEARCH,
    fetch.FETCH,
    fetch.UID_FETCH,
    store.STORE,
    store.UID_STORE,
    copy.COPY,
    copy.UID_COPY,
    move.MOVE,
    move.UID_MOVE,
)


def _login(context: Context) -> tuple[str, ...]:
    """Say how to log in, before it (RFC 9051 section 6.2)."""
    if context.principal is not None:
        return ()
    transport = context.channel.transport
    found = ["STARTTLS"] if transport.can_start_tls and not transport.tls else []
    if not context.private:
        return (*found, "LOGINDISABLED")
    return (*found, *(f"AUTH={name}" for name in sasl.MECHANISMS))


BASE = Extension(
    before_login=("IMAP4rev1", "IMAP4rev2", "SASL-IR", "ENABLE"),
    dynamic=_login,
    capabilities=(
        "IDLE",
        "NAMESPACE",
        "UIDPLUS",
        "MOVE",
        "UNSELECT",
        "CHILDREN",
        "LIST-EXTENDED",
        "LIST-STATUS",
        "SPECIAL-USE",
        "CREATE-SPECIAL-USE",
        "STATUS=SIZE",
        "ESEARCH",
        "SEARCHRES",
        "BINARY",
    ),
    commands=COMMANDS,
    attributes=columns.BASE,
    search_keys=searchkeys.KEYS,
    enables=("IMAP4rev2",),
)
"""RFC 3501 and RFC 9051, which took in RFC 2177, 2342, 3516, 3691, 4315, 4731, 4959,
5161, 5182, 5258, 5819, 6154, 6851 and 8438."""
