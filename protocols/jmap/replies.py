"""HTTP answers that JMAP gives: JSON, problem documents, CORS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mailserverd.core.errors import Kind, MailError
from protocols.jmap.wire import ijson
from protocols.jmap.wire.errors import RequestError, request_error
from protocols.web import Response

if TYPE_CHECKING:
    from protocols.web import Headers

# Any origin may ask: a script has to bring the password itself, for browsers never
# add one to a request whose answer is open to "*".
CORS: Headers = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", "Content-Disposition, Content-Range, ETag"),
)
PREFLIGHT: Headers = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Authorization, Content-Type, Accept, Accept-Language, Last-Event-ID, Range",
    ),
    ("Access-Control-Max-Age", "86400"),
)
NO_STORE: Headers = (("Cache-Control", "no-cache, no-store, must-revalidate"),)
JSON: Headers = (("Content-Type", "application/json"), *NO_STORE, *CORS)
REALM = 'Basic realm="mailserverd", charset="UTF-8"'
RETRY_AFTER = {Kind.RATE_LIMITED: "60", Kind.UNAVAILABLE: "5", Kind.LIMIT: "5"}
UNAUTHORIZED = 401


def preflight() -> Response:
    """Answer OPTIONS, without authentication."""
    return Response(204, PREFLIGHT)


def json(value: Any, status: int = 200, extra: Headers = ()) -> Response:
    """Answer with a JSON document that nobody caches."""
    return Response(status, (*JSON, *extra), ijson.dumps(value))


def problem(error: RequestError, extra: Headers = ()) -> Response:
    """Answer with a problem document (RFC 7807)."""
    headers = (("Content-Type", "application/problem+json"), *NO_STORE, *CORS, *extra)
    if error.status == UNAUTHORIZED:
        headers = (*headers, ("WWW-Authenticate", REALM))
    return Response(error.status, headers, ijson.problem(error))


def refusal(error: MailError) -> Response:
    """Answer with what a service's refusal means over HTTP."""
    wait = RETRY_AFTER.get(error.kind)
    return problem(request_error(error), (("Retry-After", wait),) if wait else ())


def not_found(detail: str = "there is nothing here") -> Response:
    """Answer 404."""
    return problem(RequestError("about:blank", detail, 404))


def wrong_method(allowed: str) -> Response:
    """Answer 405."""
    error = RequestError("about:blank", f"only {allowed} is possible here", 405)
    return problem(error, (("Allow", f"{allowed}, OPTIONS"),))
