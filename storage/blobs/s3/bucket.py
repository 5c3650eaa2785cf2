"""Objects in a bucket, by boto3.  Everything here blocks, and is safe in any thread.

Tries again by itself, with growing pauses, what may succeed: silence, lost
connections, 5xx and "slow down".  boto3 is imported when the first bucket is made.
"""

from __future__ import annotations

import base64
import configparser
import functools
import hashlib
import importlib
import itertools
import random
import threading
import time
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from mailserverd.core.errors import Kind, MailError
from mailserverd.core.log import get_logger
from mailserverd.core.metrics import counter, histogram
from storage.blobs.s3.errors import CUT, ENDS, SILENT, BucketError, Errors
from storage.report import SYNCS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from storage.blobs.s3.options import Options

T = TypeVar("T")
log = get_logger("blobs")
REQUESTS = counter(
    "blob_requests", "Requests to the object store", ("operation", "outcome")
)
PUT_SECONDS = histogram("blob_put_seconds", "Time to write one object, tries included")

TRIES = 4
BUDGET = 20.0  # seconds after which nothing is tried again
PAUSE = 0.1  # seconds before the second try; each further pause is three times longer
CHUNK = 256 * 1024
REFUSED = {400, 401, 403}  # how services say that they do not know the credentials
LEAST_RATE = 64 * 1024  # octets per second below which an answer counts as stuck
# What boto3 imports and reads when a client is made:
_MODULES = ("boto3.session", "botocore.session", "botocore.config", "boto3.s3.inject")
_DATA = ("endpoints", "partitions", "sdk-default-configuration")
_MODELS = ("service-2", "endpoint-rule-set-1")


class ObjectInfo(NamedTuple):
    """An object as a listing shows it; ``modified`` in seconds since the epoch."""

    key: str
    octets: int
    modified: float


class _Answer(NamedTuple):
    """What a GET brought, and how large the whole object is."""

    data: bytes
    size: int


class Bucket:
    """One bucket and prefix of a service; keys here are relative to the prefix."""

    def __init__(self, options: Options, connections: int) -> None:
        self.options = options
        self._prefix = f"{options.prefix}/" if options.prefix else ""
        self._closing = threading.Event()
        self._errors = Errors()
        self._connections = connections
        self._keys = _keys(options)
        self._session, self._client = self._connect()
        self._renewals = 0
        self.puts = 0  # PUT requests sent
        self.gets = 0  # GET requests sent
        self._lock = threading.Lock()

    def _connect(self) -> tuple[Any, Any]:
        return _client(self.options, self._keys, self._connections, self._errors)

    def close(self) -> None:
        """Try nothing again any more; what is under way ends by itself."""
        self._closing.set()

    def release(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def credentials(self) -> str:
        """Say where the credentials come from, not what they are."""
        if self.options.credentials:
            return f"the credentials in {self.options.credentials}"
        found = self._session.get_credentials()
        return f"the credentials found by boto3 ({found.method if found else 'none'})"

    # --- requests ---

    def put_new(self, key: str, body: bytes | IO[bytes], crc: int = 0) -> None:
        """Store an object that must not exist yet; ``crc`` is the CRC-32 of a file.

        BucketError EXISTS when there is one: perhaps our own, of an earlier try
        whose answer was lost.
        """
        if isinstance(body, bytes):
            crc = zlib.crc32(body)

        def send() -> None:
            if not isinstance(body, bytes):
                body.seek(0)
            SYNCS.inc()
            with self._lock:
                self.puts += 1
            self._client.put_object(
                Bucket=self.options.bucket,
                Key=self._prefix + key,
                Body=body,
                IfNoneMatch="*",
                ContentType="application/octet-stream",
                ChecksumCRC32=_base64_crc(crc),
            )

        with PUT_SECONDS.time():
            self._tried("put", send)

    def get(self, key: str, start: int, end: int) -> bytes:
        """Return octets [start, end) of an object, all of them.

        BucketError MISSING, or ENDS when the object ends before ``end``.
        """
        span = f"bytes={start}-{end - 1}"
        data = self._tried("get", lambda: self._get(key, span)).data
        if len(data) != end - start:
            raise BucketError(ENDS, text=f"{len(data)} octets of {end - start}")
        return data

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Return the last octets of an object, and its size."""
        answer = self._tried("get", lambda: self._get(key, f"bytes=-{length}"))
        return answer.data, answer.size

    def get_small(self, key: str) -> bytes:
        """Return a whole small object."""
        return self._tried("get", lambda: self._get(key, "")).data

    def _get(self, key: str, span: str) -> _Answer:
        with self._lock:
            self.gets += 1
        more = {"Range": span} if span else {}
        answer = self._client.get_object(
            Bucket=self.options.bucket, Key=self._prefix + key, **more
        )
        length = int(answer["ContentLength"])
        data = b"".join(self._body(answer, length))
        if len(data) != length:
            raise BucketError(CUT, text=f"{len(data)} octets of {length}")
        total = answer.get("ContentRange", "").rpartition("/")[2]
        return _Answer(data, int(total) if total.isdecimal() else length)

    def _body(self, answer: Any, length: int) -> Iterator[bytes]:
        """Read an answer; one that comes too slowly counts as silent."""
        body = answer["Body"]
        # What has come, not all that was asked for: else one octet at a time would
        # never count as silence.
        read = getattr(getattr(body, "_raw_stream", None), "read1", body.read)
        limit = self.options.timeout + length / LEAST_RATE
        started = time.monotonic()
        try:
            while chunk := read(CHUNK):
                yield chunk
                if time.monotonic() - started > limit:
                    raise BucketError(SILENT, text="an answer that is too slow")
        finally:
            body.close()

    def copy(self, key: str, sink: Callable[[bytes], object]) -> int:
        """Pass a whole object to ``sink`` in chunks; return its size.

        After a failure it is not sent again from the start: BucketError.
        """
        with self._lock:
            self.gets += 1
        try:
            answer = self._client.get_object(
                Bucket=self.options.bucket, Key=self._prefix + key
            )
            length = int(answer["ContentLength"])
            done = 0
            for chunk in self._body(answer, length):
                sink(chunk)
                done += len(chunk)
        except self._errors.all as e:
            raise self._errors.explain(e) from e
        if done != length:
            raise BucketError(CUT, text=f"{done} octets of {length}")
        return length

    def equals(self, key: str, chunks: Callable[[], Iterable[bytes]]) -> bool:
        """Return whether an object is exactly what ``chunks()`` yields."""
        ours = hashlib.sha256()
        for chunk in chunks():
            ours.update(chunk)

        def ask() -> bool:
            theirs = hashlib.sha256()
            self.copy(key, theirs.update)
            return theirs.digest() == ours.digest()

        return self._tried("get", ask)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with ``prefix``, in their order."""
        token = ""
        while True:
            page = self._tried("list", functools.partial(self._page, prefix, token))
            for found in page.get("Contents", ()):
                yield ObjectInfo(
                    found["Key"][len(self._prefix) :],
                    int(found["Size"]),
                    found["LastModified"].timestamp(),
                )
            token = page.get("NextContinuationToken", "")
            if not token:
                return

    def _page(self, prefix: str, token: str) -> Any:
        more = {"ContinuationToken": token} if token else {}
        return self._client.list_objects_v2(
            Bucket=self.options.bucket, Prefix=self._prefix + prefix, **more
        )

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        self._tried(
            "delete",
            lambda: self._client.delete_object(
                Bucket=self.options.bucket, Key=self._prefix + key
            ),
        )

    def copy_into(self, key: str, file: IO[bytes]) -> int:
        """Write a whole object into a file, from its start; return its size."""

        def ask() -> int:
            file.seek(0)
            file.truncate()
            return self.copy(key, file.write)

        return self._tried("get", ask)

    def pause(self, seconds: float) -> None:
        """Wait; SILENT when the store is closed meanwhile."""
        if seconds > 0 and self._closing.wait(seconds):
            raise BucketError(SILENT, text="the store is being closed")

    # --- trying ---

    def _tried(self, operation: str, send: Callable[[], T]) -> T:
        """Send until it succeeds or there is no point; BucketError says why."""
        until = time.monotonic() + BUDGET
        for attempt in itertools.count(1):
            renewals = self._renewals
            try:
                result = send()
            except self._errors.all as e:
                problem = self._errors.explain(e)
                REQUESTS.labels(operation, problem.code).inc()
                if problem.status in REFUSED and self._renewed(renewals):
                    continue
                late = time.monotonic() > until
                if late or not self._goes_on(operation, problem, attempt):
                    raise problem from e
            else:
                REQUESTS.labels(operation, "ok").inc()
                return result
        raise AssertionError("unreachable")

    def _renewed(self, since: int) -> bool:
        """Read the credentials file again; True when it says something else than
        what a request used that began ``since`` so many renewals."""
        with self._lock:
            if self._renewals == since:
                try:
                    keys = _keys(self.options)
                except MailError:  # being written just now, perhaps
                    return False
                if keys == self._keys:
                    return False
                self._keys = keys
                self._session, self._client = self._connect()
                self._renewals += 1
                log.info("blob-credentials-renewed", file=self.options.credentials)
            return True

    def _goes_on(self, operation: str, problem: BucketError, attempt: int) -> bool:
        """Wait before the next try; False when there is to be none."""
        if not problem.again or attempt >= TRIES:
            return False
        log.warning(
            "blob-request-repeated",
            operation=operation,
            code=problem.code,
            status=problem.status,
            attempt=attempt,
        )
        pause = PAUSE * 3 ** (attempt - 1) * (0.5 + random.random())
        return not self._closing.wait(pause)


def _base64_crc(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def import_boto3() -> None:
    """Do once what making a client would: import its modules and read the files that
    describe S3.  ModuleNotFoundError when boto3 is not installed."""
    for name in _MODULES:
        importlib.import_module(name)
    for name in _DATA:
        _loader().load_data(name)
    for name in _MODELS:
        _loader().load_service_model("s3", name)


@functools.cache
def _loader() -> Any:
    """Return what reads boto3's description of S3: once is enough for a process."""
    return importlib.import_module("botocore.loaders").create_loader()


def _client(
    options: Options, keys: dict[str, str | None], connections: int, errors: Errors
) -> tuple[Any, Any]:
    """Make boto3's session and client; tries and checksums are our own."""
    boto3: Any = importlib.import_module("boto3.session")
    botocore: Any = importlib.import_module("botocore.session")
    config: Any = importlib.import_module("botocore.config")
    try:
        core = botocore.Session(profile=None if keys else options.profile or None)
        core.register_component("data_loader", _loader())
        session = boto3.Session(botocore_session=core)
        client = session.client(
            "s3",
            endpoint_url=options.endpoint or None,
            region_name=options.region or session.region_name or "us-east-1",
            config=config.Config(
                connect_timeout=options.connect_timeout,
                read_timeout=options.timeout,
                retries={"total_max_attempts": 1},
                max_pool_connections=connections,
                tcp_keepalive=True,
                # Some services know no checksum in a trailer: ours goes in a header.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if options.endpoint else "auto"},
            ),
            **keys,
        )
    except errors.all as e:
        raise MailError(Kind.INVALID, f"blobs: {options.place}: {e}") from e
    return session, client


def _keys(options: Options) -> dict[str, str | None]:
    """Read the credentials file that the URL names; nothing when it names none."""
    if not options.credentials:
        return {}
    parser = configparser.RawConfigParser()
    section = options.profile or "default"
    try:
        with open(options.credentials, encoding="utf-8") as file:
            parser.read_file(file)
        found = dict(parser[section])
        return {
            "aws_access_key_id": found["aws_access_key_id"],
            "aws_secret_access_key": found["aws_secret_access_key"],
            "aws_session_token": found.get("aws_session_token") or None,
        }
    except OSError as e:
        why = e.strerror
    except (KeyError, UnicodeDecodeError, configparser.Error):
        # The error itself may quote a line of the file.
        why = (
            f"needs a section [{section}] with aws_access_key_id and "
            "aws_secret_access_key"
        )
    raise MailError(Kind.INVALID, f"blobs: credentials={options.credentials}: {why}")
