"""A real S3 server on loopback: SeaweedFS, with sync on, stopped by its pid.

``site()`` starts one for the whole test session, when first asked; each test takes
a bucket of its own (``site().bucket()``).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import boto3
import botocore.config
import botocore.exceptions

from storage.blobs.s3 import Options, S3BlobStore
from tests.lib.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Its log goes where its output goes, not to files in /tmp beside.
WEED = (str(pathlib.Path(sys.executable).with_name("weed")), "-logtostderr")
KEY, SECRET = "tester", "not-a-secret"
REGION = "us-east-1"
START_LIMIT = 60.0
IDENTITIES = {
    "identities": [
        {
            "name": "tester",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": "reader", "secretKey": SECRET}],
            "actions": ["Read", "List"],
        },
    ]
}
FIXED = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-master.telemetry=false",
    "-volume.max=200",
    "-master.volumeSizeLimitMB=256",
    "-master.electionTimeout=1s",
    "-volume.preStopSeconds=1",
    "-filer",
    "-s3",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
)


class SeaweedFS:
    """One server; ``close`` ends it and removes what it stored."""

    def __init__(self) -> None:
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="seaweedfs-"))
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._numbers = itertools.count(1)
        self._ports = {
            name: free_port()
            for role in ("master", "volume", "filer")
            for name in (f"{role}.port", f"{role}.port.grpc")
        }
        self._ports["s3.port.grpc"] = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (self.home / "s3.json").write_text(json.dumps(IDENTITIES))
        (self.home / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
        (self.home / "data").mkdir()

    def start(self) -> None:
        """Start, and wait until buckets can be made; waits for sync to be on."""
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*WEED, "server", f"-dir={self.home / 'data'}", *FIXED, *ports),
                    *(f"-s3.port={self.port}", f"-s3.config={self.home / 's3.json'}"),
                ],
                cwd=self.home,  # where it looks for master.toml
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait()
        self._shell("fs.configure -locationPrefix=/buckets/ -fsync -apply\n")

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_LIMIT
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(
                OSError,
                botocore.exceptions.BotoCoreError,
                botocore.exceptions.ClientError,
            ):
                self.client().put_object(Bucket=self.bucket(), Key="one", Body=b"1")
                return
            time.sleep(0.1)
        raise RuntimeError(f"seaweedfs: {(self.home / 'log').read_text()[-2000:]}")

    def _shell(self, text: str) -> None:
        master = self._ports["master.port"], self._ports["master.port.grpc"]
        filer = self._ports["filer.port"], self._ports["filer.port.grpc"]
        subprocess.run(
            [
                *(*WEED, "shell", f"-master=127.0.0.1:{master[0]}.{master[1]}"),
                f"-filer=127.0.0.1:{filer[0]}.{filer[1]}",
            ],
            input=text.encode(),
            check=True,
            capture_output=True,
            timeout=60,
            cwd=self.home,
        )

    def client(self):
        """Return a client with the tester's key, without retries."""
        return _client(self.endpoint)

    def bucket(self) -> str:
        """Make a bucket that nobody else uses; return its name."""
        name = f"mail-{os.getpid()}-{next(self._numbers)}"
        self.client().create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """Return the size of each object in a bucket."""
        paginator = self.client().get_paginator("list_objects_v2")
        pages = paginator.paginate(Bucket=bucket, Prefix=prefix)
        return {o["Key"]: o["Size"] for p in pages for o in p.get("Contents", ())}

    def octets_stored(self) -> int:
        """Return what its data takes on the disk."""
        files = (self.home / "data").rglob("*")
        return sum(f.stat().st_size for f in files if f.is_file())

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End the process; what it stored stays."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the process and remove everything."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)
        for port in (self.port, *self._ports.values()):
            for socket in pathlib.Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)


@functools.cache
def _client(endpoint: str):
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=botocore.config.Config(
            retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20
        ),
    )


@functools.cache
def site() -> SeaweedFS:
    """Return the session's server, started when first asked for."""
    made = SeaweedFS()
    atexit.register(made.close)
    try:
        made.start()
    except BaseException:
        made.close()
        raise
    return made


def credentials(key: str = KEY) -> dict[str, str]:
    """Return the environment that a process needs to reach the server."""
    return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": SECRET}


@functools.cache
def credentials_file(key: str = KEY, secret: str = SECRET) -> str:
    """Return the path of a credentials file for the server."""
    path = site().home / f"credentials-{key}-{len(secret)}"
    path.write_text(
        f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    )
    return str(path)


@functools.cache
def common_bucket() -> str:
    """Return a bucket that tests share, each with a prefix of its own."""
    return site().bucket()


def options(prefix: str, bucket: str = "", endpoint: str = "") -> Options:
    """Return the options of a blob store on the server."""
    return Options(
        bucket or common_bucket(),
        prefix,
        endpoint or site().endpoint,
        REGION,
        credentials_file(),
    )


@contextlib.asynccontextmanager
async def opened(settings: Options, **changes: Any) -> AsyncIterator[S3BlobStore]:
    """Open a blob store; close it at the end."""
    store = await S3BlobStore.open(dataclasses.replace(settings, **changes))
    try:
        yield store
    finally:
        await store.close()


def url(prefix: str, bucket: str = "", endpoint: str = "", **more: object) -> str:
    """Return the same as a URL."""
    query = {
        "endpoint": endpoint or site().endpoint,
        "region": REGION,
        "credentials": credentials_file(),
        **more,
    }
    return f"s3://{bucket or common_bucket()}/{prefix}?{urllib.parse.urlencode(query)}"
