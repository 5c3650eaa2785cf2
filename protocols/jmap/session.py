"""The Session object (RFC 8620 section 2, RFC 8621 section 1.3, RFC 8887 section 3)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from protocols.jmap.services import CORE, MAIL, SUBMISSION, WEBSOCKET
from protocols.jmap.submission import EXTENSIONS, MAX_DELAY
from protocols.jmap.wire import ids, ijson

if TYPE_CHECKING:
    from auth.people.authenticate import Principal
    from protocols.jmap.services import Settings

SORTS = [
    "receivedAt",
    "sentAt",
    "size",
    "from",
    "to",
    "subject",
    "hasKeyword",
    "allInThreadHaveKeyword",
    "someInThreadHaveKeyword",
]
API, SOCKET, EVENTS = "/jmap/api", "/jmap/ws", "/jmap/eventsource"
UPLOAD, DOWNLOAD = "/jmap/upload/", "/jmap/download/"
MAX_STATES = 10_000


class Sessions:
    """Makes session objects; knows which capabilities are offered."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._states: dict[tuple[int, str], str] = {}
        self.capabilities = frozenset({CORE, MAIL, SUBMISSION, WEBSOCKET})

    def state(self, principal: Principal) -> str:
        """Return the session state: changes when what is offered does."""
        key = (principal.account, principal.address)
        known = self._states.get(key)
        if known is None:
            content = ijson.dumps(self._content(principal, ""))
            known = hashlib.sha256(content).hexdigest()[:12]
            if len(self._states) >= MAX_STATES:
                self._states.clear()
            self._states[key] = known
        return known

    def object(self, principal: Principal, base: str) -> dict[str, Any]:
        """Return the session; ``base`` is ``https://host`` when none is configured."""
        base = self._settings.public_url.rstrip("/") or base
        return {**self._content(principal, base), "state": self.state(principal)}

    def _content(self, principal: Principal, base: str) -> dict[str, Any]:
        account = ids.account(principal.account)
        types = "types={types}&closeafter={closeafter}&ping={ping}"
        return {
            "capabilities": {
                CORE: self._core(),
                MAIL: {},
                SUBMISSION: {},
                WEBSOCKET: {
                    "url": base.replace("http", "ws", 1) + SOCKET,
                    "supportsPush": True,
                },
            },
            "accounts": {
                account: {
                    "name": principal.address,
                    "isPersonal": True,
                    "isReadOnly": False,
                    "accountCapabilities": self._account(),
                }
            },
            "primaryAccounts": dict.fromkeys((MAIL, SUBMISSION), account),
            "username": principal.address,
            "apiUrl": base + API,
            "downloadUrl": base
            + DOWNLOAD
            + "{accountId}/{blobId}/{name}?accept={type}",
            "uploadUrl": base + UPLOAD + "{accountId}",
            "eventSourceUrl": f"{base}{EVENTS}?{types}",
        }

    def _core(self) -> dict[str, Any]:
        limits = self._settings.limits
        return {
            "maxSizeUpload": limits.max_size_upload,
            "maxConcurrentUpload": limits.max_concurrent_upload,
            "maxSizeRequest": limits.max_size_request,
            "maxConcurrentRequests": limits.max_concurrent_requests,
            "maxCallsInRequest": limits.max_calls_in_request,
            "maxObjectsInGet": limits.max_objects_in_get,
            "maxObjectsInSet": limits.max_objects_in_set,
            "collationAlgorithms": ["i;unicode-casemap"],
        }

    def _account(self) -> dict[str, Any]:
        limits = self._settings.limits
        return {
            CORE: {},
            MAIL: {
                "maxMailboxesPerEmail": None,
                "maxMailboxDepth": limits.max_mailbox_depth,
                "maxSizeMailboxName": limits.max_size_mailbox_name,
                "maxSizeAttachmentsPerEmail": limits.max_size_attachments,
                "emailQuerySortOptions": SORTS,
                "mayCreateTopLevelMailbox": True,
            },
            SUBMISSION: {
                "maxDelayedSend": MAX_DELAY,
                "submissionExtensions": EXTENSIONS,
            },
        }
