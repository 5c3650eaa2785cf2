"""JMAP over HTTP: which path does what, and who may (RFC 8620 sections 2 and 3.1)."""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from protocols.jmap import blobs, events, replies, session
from protocols.jmap.api import Api
from protocols.jmap.gate import Gate
from protocols.jmap.methods import METHODS
from protocols.jmap.session import Sessions
from protocols.jmap.socket import JmapSocket
from protocols.jmap.wire import ijson
from protocols.jmap.wire.errors import RequestError, limit, not_json
from protocols.web import Body, Head, Release, Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from auth.people.authenticate import Principal
    from protocols.jmap.services import Services

    Handler = Callable[["JmapSite", Head, Body, Principal], Awaitable[Response]]

log = get_logger("jmap")
WELL_KNOWN, SESSION = "/.well-known/jmap", "/jmap/session"
_HOST = re.compile(
    r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d+)?"
)
_JSON = re.compile(r"\s*application/json\s*(;.*)?", re.IGNORECASE)
SMALL_BODY = 64 * 1024  # octets that any other path swallows


class JmapSite:
    """Everything under ``/jmap`` and ``/.well-known/jmap``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self.sessions = Sessions(services.settings)
        self.api = Api(services, self.sessions, METHODS)
        limits = services.settings.limits
        self._requests = Gate(limits.max_concurrent_requests)
        self._uploads = Gate(limits.max_concurrent_upload)

    # --- what the front end calls ---------------------------------------------

    def body_limit(self, head: Head) -> int:
        """Return how many octets a body to this path may have."""
        limits = self._settings.limits
        if head.path.startswith(session.UPLOAD):
            return limits.max_size_upload
        if head.path == session.API:
            return limits.max_size_request
        return SMALL_BODY

    def too_large(self, head: Head) -> Response:
        """Name the limit (RFC 8620 section 3.6.1)."""
        upload = head.path.startswith(session.UPLOAD)
        name = "maxSizeUpload" if upload else "maxSizeRequest"
        detail = "the body is larger than this path takes"
        return replies.problem(limit(name, detail, 413))

    async def admit(self, head: Head) -> Release | Response:
        """Know who sends a large body before it is taken."""
        try:
            principal = await self._authenticate(head)
            if head.path.startswith(session.UPLOAD):
                return self._admit_upload(principal)
        except MailError as error:
            return replies.refusal(error)
        except RequestError as error:
            return replies.problem(error)
        return lambda: None

    def _admit_upload(self, principal: Principal) -> Release:
        if not self._uploads.enter(principal.account):
            raise limit("maxConcurrentUpload", "too many uploads at once", 429)
        return functools.partial(self._uploads.leave, principal.account)

    async def handle(self, head: Head, body: Body) -> Response:
        """Answer a request; never raises."""
        try:
            return await self._route(head, body)
        except RequestError as error:
            return replies.problem(error)
        except MailError as error:
            return replies.refusal(error)
        except Exception:
            log.exception("http-request-failed", path=head.path)
            detail = "an internal error; it was logged"
            return replies.problem(RequestError("about:blank", detail, 500))

    # --- routing --------------------------------------------------------------

    async def _route(self, head: Head, body: Body) -> Response:
        if head.method == "OPTIONS":
            return replies.preflight()
        found = _ROUTES.get(head.path) or _by_prefix(head.path)
        if found is None:
            return replies.not_found()
        methods, handler = found
        if head.method not in methods:
            return replies.wrong_method(", ".join(methods))
        return await handler(self, head, body, await self._authenticate(head))

    async def _authenticate(self, head: Head) -> Principal:
        """Basic authentication (RFC 7617), over TLS unless the settings allow less."""
        scheme, _, encoded = head.header("authorization").partition(" ")
        if not scheme:
            raise MailError(Kind.AUTH_REQUIRED, "log in with Basic authentication")
        if not head.secure and not self._settings.plaintext_auth:
            raise MailError(Kind.TLS_REQUIRED, "passwords are taken over TLS only")
        if scheme.lower() != "basic":
            raise MailError(Kind.AUTH_FAILED, "only Basic authentication is supported")
        try:
            user, colon, password = base64.b64decode(encoded.strip()).partition(b":")
            name = user.decode()
        except (binascii.Error, ValueError) as error:
            raise MailError(Kind.AUTH_FAILED, "malformed credentials") from error
        if not colon:
            raise MailError(Kind.AUTH_FAILED, "malformed credentials")
        return await self._services.authenticator.check_password(
            name, password, peer=head.peer, protocol="jmap"
        )

    # --- handlers -------------------------------------------------------------

    async def _session(self, head: Head, _: Body, who: Principal) -> Response:
        return replies.json(self.sessions.object(who, _base(head)))

    async def _api(self, head: Head, body: Body, who: Principal) -> Response:
        if not _JSON.fullmatch(head.header("content-type")):
            raise not_json("the content type must be application/json")
        if not await self._requests.enter_soon(who.account):
            raise limit("maxConcurrentRequests", "too many requests at once", 429)
        share = self.api.share()

        def leave() -> None:
            share.close()
            self._requests.leave(who.account)

        try:
            data = body.data
            if body.file is not None:
                data = await self._services.offload(body.read)
            response = await self.api.run(who, await self.api.parse(data), share)
            answer = ijson.dumps(response)
            share.settle(len(answer))
        except BaseException:
            leave()
            raise
        # who does not read has so many answers waiting, and no more
        return Response(200, replies.JSON, answer, done=leave)

    async def _socket(self, head: Head, _: Body, who: Principal) -> Response:
        """RFC 8887 section 4.2: the subprotocol is ``jmap``, the origin known."""
        if "websocket" not in head.header("upgrade").lower().replace(" ", "").split(
            ","
        ):
            error = RequestError("about:blank", "a WebSocket is spoken here", 426)
            upgrade = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
            return replies.problem(error, upgrade)
        if not self._origin_allowed(head):
            raise MailError(Kind.FORBIDDEN, "this origin may not open a WebSocket")
        offered = head.header("sec-websocket-protocol").replace(" ", "").split(",")
        if "jmap" not in offered:
            raise MailError(Kind.INVALID, "the subprotocol jmap must be offered")
        own = JmapSocket(self._services, self.api, self._requests, who)
        return Response(101, subprotocol="jmap", upgrade=own.attach)

    def _origin_allowed(self, head: Head) -> bool:
        origin = head.header("origin")
        if not origin or origin in self._settings.allowed_origins:
            return True
        own = (_base(head), self._settings.public_url.rstrip("/"))
        return not self._settings.allowed_origins and origin in own

    async def _events(self, head: Head, _: Body, who: Principal) -> Response:
        query = dict(parse_qsl(head.query, keep_blank_values=True))
        last = head.header("last-event-id")
        return events.stream(self._services, who, query, last)

    async def _upload(self, head: Head, body: Body, who: Principal) -> Response:
        account = unquote(head.path[len(session.UPLOAD) :]).strip("/")
        return await blobs.upload(self._services, who, account, (head, body))

    async def _download(self, head: Head, _: Body, who: Principal) -> Response:
        query = dict(parse_qsl(head.query, keep_blank_values=True))
        pieces = head.path[len(session.DOWNLOAD) :].split("/", 2)
        if len(pieces) != 3:
            return replies.not_found()
        account, blob, name = (unquote(piece) for piece in pieces)
        wanted = blobs.Wanted(account, blob, name, query.get("accept", ""))
        return await blobs.download(self._services, who, wanted, head)


_GET, _POST, _READ = ("GET",), ("POST",), ("GET", "HEAD")
_ROUTES: dict[str, tuple[tuple[str, ...], Handler]] = {
    WELL_KNOWN: (_READ, JmapSite._session),
    SESSION: (_READ, JmapSite._session),
    session.API: (_POST, JmapSite._api),
    session.SOCKET: (_GET, JmapSite._socket),
    session.EVENTS: (_GET, JmapSite._events),
}
_PREFIXES: tuple[tuple[str, tuple[str, ...], Handler], ...] = (
    (session.UPLOAD, _POST, JmapSite._upload),
    (session.DOWNLOAD, _READ, JmapSite._download),
)


def _by_prefix(path: str) -> tuple[tuple[str, ...], Handler] | None:
    for prefix, methods, handler in _PREFIXES:
        if path.startswith(prefix):
            return methods, handler
    return None


def _base(head: Head) -> str:
    """Return the base of our URLs, as the client sees us."""
    host = head.header("host")
    if not _HOST.fullmatch(host):
        host = head.local
    return f"{'https' if head.secure else 'http'}://{host}"
