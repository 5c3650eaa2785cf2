"""What goes wrong with an object store, in words of our own."""

from __future__ import annotations

import importlib
from typing import Any

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger

log = get_logger("blobs")

MISSING = "NoSuchKey"
NO_BUCKET = "NoSuchBucket"
EXISTS = "PreconditionFailed"
CUT = "CutShort"
ENDS = "ObjectEnds"
BEYOND = "InvalidRange"
SILENT = "NoAnswer"
UNREACHABLE = "Unreachable"
NO_CREDENTIALS = "NoCredentials"
_AGAIN = {408, 409, 429, 500, 502, 503, 504}
_AGAIN_CODES = {"SlowDown", "RequestTimeout", "InternalError", CUT, SILENT, UNREACHABLE}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}


class BucketError(Exception):
    """What the service answered, or that it did not: ``code`` is its own word."""

    def __init__(self, code: str, status: int = 0, text: str = "") -> None:
        super().__init__(f"{code} ({status})" if status else code, text)
        self.code = code
        self.status = status
        self.text = text

    def __str__(self) -> str:
        return ": ".join(filter(None, self.args))

    @property
    def again(self) -> bool:
        """True when the same request may succeed soon."""
        return self.status in _AGAIN or self.code in _AGAIN_CODES

    def told(self, what: str) -> MailError:
        """Log the cause; return what callers are told."""
        log.error("blob-store-failed", what=what, code=self.code, status=self.status)
        kind = Kind.STORAGE_FULL if self.is_full else Kind.UNAVAILABLE
        return MailError(kind, what)

    @property
    def is_full(self) -> bool:
        """True when the service has no room for us."""
        return self.code in _FULL or self.status == 507


class Errors:
    """What boto3 and what lies below it may raise, in our words."""

    def __init__(self) -> None:
        try:
            self._botocore: Any = importlib.import_module("botocore.exceptions")
            urllib3: Any = importlib.import_module("urllib3.exceptions")
            importlib.import_module("boto3")
        except ImportError as e:
            raise MailError(
                Kind.UNAVAILABLE,
                "blobs: s3: needs boto3; run: pip install 'mailserverd[s3]'",
            ) from e
        self.all: tuple[type[Exception], ...] = (
            self._botocore.BotoCoreError,
            self._botocore.ClientError,
            urllib3.HTTPError,
            OSError,
            BucketError,
        )
        known = self._botocore
        self._without_keys: tuple[type[Exception], ...] = (
            known.NoCredentialsError,
            known.PartialCredentialsError,
            known.CredentialRetrievalError,
        )
        self._without_way: tuple[type[Exception], ...] = (
            known.EndpointConnectionError,
            known.ConnectTimeoutError,
            known.SSLError,
            known.ProxyConnectionError,
        )

    def explain(self, error: Exception) -> BucketError:
        """Return what happened."""
        if isinstance(error, BucketError):
            return error
        known = self._botocore
        if isinstance(error, known.ClientError):
            return _answered(error)
        why = type(error).__name__
        if isinstance(error, self._without_keys):
            return BucketError(NO_CREDENTIALS, text=why)
        if isinstance(error, self._without_way):
            return BucketError(UNREACHABLE, text=why)
        if isinstance(error, known.BotoCoreError) and not isinstance(
            error, known.HTTPClientError | known.IncompleteReadError
        ):
            return BucketError(why, text=str(error))
        cut = isinstance(error, known.IncompleteReadError)
        return BucketError(CUT if cut else SILENT, text=why)


def _answered(error: Any) -> BucketError:
    """Read the service's refusal; a HEAD's has no body, and only its status."""
    status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in {"404", "NotFound"}:
        code = MISSING
    if status == 412:
        code = EXISTS
    text = str(error.response.get("Error", {}).get("Message", ""))
    return BucketError(code or str(status), status, text)
