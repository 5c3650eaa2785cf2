"""The three levels of JMAP errors, and the one table that maps our error kinds.

A request as a whole fails with a problem document (RFC 8620 section 3.6.1), one
method call with an ``error`` response (section 3.6.2), one record of a ``/set``
with a SetError (section 5.3).
"""

from __future__ import annotations

from typing import Any

from mailserverd.core.errors import Kind, MailError

PREFIX = "urn:ietf:params:jmap:error:"


class RequestError(Exception):
    """The whole request is refused: an HTTP status and a problem document."""

    def __init__(
        self, kind: str, detail: str, status: int = 400, **extra: object
    ) -> None:
        super().__init__(kind, detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.extra = extra

    def problem(self) -> dict[str, Any]:
        """Return the problem document (RFC 7807), ``type`` first."""
        kind = self.kind if ":" in self.kind else PREFIX + self.kind
        return {
            "type": kind,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }


def not_json(detail: str) -> RequestError:
    """The body is not I-JSON, or not said to be."""
    return RequestError("notJSON", detail)


def not_request(detail: str) -> RequestError:
    """The JSON is not a Request object."""
    return RequestError("notRequest", detail)


def limit(name: str, detail: str, status: int = 400) -> RequestError:
    """A request limit of the core capability was exceeded."""
    return RequestError("limit", detail, status, limit=name)


class MethodError(Exception):
    """One method call fails with ``type`` (RFC 8620 section 3.6.2)."""

    def __init__(self, kind: str, description: str = "", **extra: object) -> None:
        super().__init__(kind, description)
        self.kind = kind
        self.description = description
        self.extra = extra

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the ``error`` response."""
        found: dict[str, Any] = {"type": self.kind}
        if self.description:
            found["description"] = self.description
        return {**found, **self.extra}


def invalid_arguments(description: str) -> MethodError:
    """An argument is of the wrong type, invalid, unknown or missing."""
    return MethodError("invalidArguments", description)


class SetError(Exception):
    """One create, update or destroy fails (RFC 8620 section 5.3)."""

    def __init__(self, kind: str, description: str = "", **extra: object) -> None:
        super().__init__(kind, description)
        self.kind = kind
        self.description = description
        self.extra = extra

    def object(self) -> dict[str, Any]:
        """Return the SetError object."""
        found: dict[str, Any] = {"type": self.kind}
        if self.description:
            found["description"] = self.description
        return {**found, **self.extra}


def invalid_properties(properties: list[str], description: str = "") -> SetError:
    """Say which properties are wrong: all of them."""
    names = list(dict.fromkeys(properties))
    return SetError("invalidProperties", description, properties=names)


METHOD_ERRORS = {
    Kind.NOT_FOUND: "invalidArguments",
    Kind.ALREADY_EXISTS: "invalidArguments",
    Kind.INVALID: "invalidArguments",
    Kind.TOO_LARGE: "requestTooLarge",
    Kind.OVER_QUOTA: "serverUnavailable",
    Kind.LIMIT: "serverUnavailable",
    Kind.RATE_LIMITED: "serverUnavailable",
    Kind.AUTH_FAILED: "forbidden",
    Kind.AUTH_REQUIRED: "forbidden",
    Kind.TLS_REQUIRED: "forbidden",
    Kind.FORBIDDEN: "forbidden",
    Kind.SENDER_REFUSED: "forbidden",
    Kind.NO_SUCH_USER: "accountNotFound",
    Kind.RELAY_DENIED: "forbidden",
    Kind.POLICY: "forbidden",
    Kind.TEMPORARY_POLICY: "serverUnavailable",
    Kind.MAIL_LOOP: "forbidden",
    Kind.HAS_CHILDREN: "forbidden",
    Kind.NOT_EMPTY: "forbidden",
    Kind.STATE_MISMATCH: "stateMismatch",
    Kind.CANNOT_CALCULATE_CHANGES: "cannotCalculateChanges",
    Kind.ANCHOR_NOT_FOUND: "anchorNotFound",
    Kind.CONFLICT: "serverUnavailable",
    Kind.UNAVAILABLE: "serverUnavailable",
    Kind.STORAGE_FULL: "serverUnavailable",
    Kind.UNSUPPORTED: "unsupportedFilter",
    Kind.INTERNAL: "serverFail",
}

SET_ERRORS = {
    Kind.NOT_FOUND: "notFound",
    Kind.ALREADY_EXISTS: "invalidProperties",
    Kind.INVALID: "invalidProperties",
    Kind.TOO_LARGE: "tooLarge",
    Kind.OVER_QUOTA: "overQuota",
    Kind.LIMIT: "overQuota",
    Kind.RATE_LIMITED: "rateLimit",
    Kind.AUTH_FAILED: "forbidden",
    Kind.AUTH_REQUIRED: "forbidden",
    Kind.TLS_REQUIRED: "forbidden",
    Kind.FORBIDDEN: "forbidden",
    Kind.SENDER_REFUSED: "forbiddenFrom",
    Kind.NO_SUCH_USER: "invalidRecipients",
    Kind.RELAY_DENIED: "forbiddenToSend",
    Kind.POLICY: "forbiddenToSend",
    Kind.TEMPORARY_POLICY: "serverUnavailable",
    Kind.MAIL_LOOP: "forbiddenToSend",
    Kind.HAS_CHILDREN: "mailboxHasChild",
    Kind.NOT_EMPTY: "mailboxHasEmail",
    Kind.STATE_MISMATCH: "stateMismatch",
    Kind.CANNOT_CALCULATE_CHANGES: "serverFail",
    Kind.ANCHOR_NOT_FOUND: "serverFail",
    Kind.CONFLICT: "serverUnavailable",
    Kind.UNAVAILABLE: "serverUnavailable",
    Kind.STORAGE_FULL: "serverUnavailable",
    Kind.UNSUPPORTED: "invalidProperties",
    Kind.INTERNAL: "serverFail",
}

HTTP_STATUS = {
    Kind.NOT_FOUND: 404,
    Kind.ALREADY_EXISTS: 409,
    Kind.INVALID: 400,
    Kind.TOO_LARGE: 413,
    Kind.OVER_QUOTA: 507,
    Kind.LIMIT: 503,
    Kind.RATE_LIMITED: 429,
    Kind.AUTH_FAILED: 401,
    Kind.AUTH_REQUIRED: 401,
    Kind.TLS_REQUIRED: 403,
    Kind.FORBIDDEN: 403,
    Kind.SENDER_REFUSED: 403,
    Kind.NO_SUCH_USER: 404,
    Kind.RELAY_DENIED: 403,
    Kind.POLICY: 403,
    Kind.TEMPORARY_POLICY: 503,
    Kind.MAIL_LOOP: 403,
    Kind.HAS_CHILDREN: 409,
    Kind.NOT_EMPTY: 409,
    Kind.STATE_MISMATCH: 412,
    Kind.CANNOT_CALCULATE_CHANGES: 409,
    Kind.ANCHOR_NOT_FOUND: 400,
    Kind.CONFLICT: 409,
    Kind.UNAVAILABLE: 503,
    Kind.STORAGE_FULL: 507,
    Kind.UNSUPPORTED: 400,
    Kind.INTERNAL: 500,
}


def method_error(error: MailError) -> MethodError:
    """Translate a service's refusal into a method error."""
    return MethodError(METHOD_ERRORS[error.kind], error.text)


def set_error(error: MailError) -> SetError:
    """Translate a service's refusal into a SetError; keeps the bad properties."""
    return kind_error(error.kind, error.text, error.details)


def kind_error(kind: Kind, text: str, details: dict[str, object]) -> SetError:
    """Build a SetError from an error kind, its text and its plain details."""
    name = SET_ERRORS[kind]
    extra: dict[str, object] = {}
    if name == "invalidProperties":
        extra["properties"] = details.get("properties", [])
    return SetError(name, text, **extra)


def request_error(error: MailError) -> RequestError:
    """Translate a refusal into an HTTP problem document."""
    return RequestError("about:blank", error.text, HTTP_STATUS[error.kind])
