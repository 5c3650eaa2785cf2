"""The blob store on S3 when the service, or the way to it, fails."""

import asyncio
import dataclasses
import io
import itertools
import os
import pathlib
import ssl
import sys

import pytest

from mailserverd.cli.selfsigned import self_signed
from mailserverd.core.errors import Kind, MailError
from mailserverd.core.ports import SystemClock
from storage.blobs.s3 import bucket
from storage.blobs.s3.errors import BucketError, Errors
from storage.blobs.s3.layout import key_of
from storage.blobs.s3.url import open_blobs, size_of
from tests.lib import seaweedfs
from tests.lib.blobs import verified
from tests.lib.ports import free_port
from tests.lib.s3proxy import Proxy
from tests.lib.waiting import eventually

_prefixes = itertools.count(1)
MESSAGE = (
    b"Subject: hello\r\n\r\n" + b"the quick brown fox jumps over the dog\r\n" * 120
)
LARGE = os.urandom(600_000)
SECRET = "never-to-be-shown"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Tries follow one another quickly."""
    monkeypatch.setattr(bucket, "PAUSE", 0.01)


@pytest.fixture
def proxy():
    """What stands before the service."""
    with Proxy(seaweedfs.site().port) as between:
        yield between


@pytest.fixture
def options(proxy):
    """A prefix of its own, through the proxy; no cache, so that reads are GETs."""
    prefix = f"fault-{os.getpid()}-{next(_prefixes)}"
    return dataclasses.replace(
        seaweedfs.options(prefix, endpoint=proxy.endpoint),
        memory=0,
        timeout=0.5,
        large=500_000,
        piece=200_000,
    )


def on(options, work):
    """Run ``work(store)`` on an open store."""

    async def run():
        async with seaweedfs.opened(options) as store:
            return await work(store)

    return asyncio.run(run())


def segments(options):
    """Return how many objects the store has."""
    found = seaweedfs.site().objects(options.bucket, f"{options.prefix}/segments/")
    return len(found)


async def kind_of(awaitable):
    """Return the kind of the error that is raised."""
    with pytest.raises(MailError) as caught:
        await awaitable
    assert caught.value.temporary
    return caught.value.kind


# --- writing ---


@pytest.mark.parametrize("how", ["cut answer", "silence"])
@pytest.mark.parametrize("verify", [False, True])
def test_a_put_that_arrived_is_acknowledged_though_its_answer_was_lost(
    proxy, options, how, verify
):
    async def work(store):
        proxy.harm("PUT", how)
        ref = await store.put(MESSAGE)
        assert await store.read(ref) == MESSAGE
        assert segments(options) == 1
        assert proxy.count("PUT", "segments") == 2
        assert store.stats().syncs == 2

    on(dataclasses.replace(options, verify=verify), work)


@pytest.mark.parametrize("how", ["cut answer", "silence", "drop", "SlowDown"])
def test_the_same_for_a_large_file(proxy, options, how):
    async def work(store):
        proxy.harm("PUT", how)
        ref = await store.put_file(io.BytesIO(LARGE), len(LARGE))
        assert await store.read(ref) == LARGE
        assert segments(options) == 1

    on(options, work)


@pytest.mark.parametrize("how", ["drop", "SlowDown", "InternalError"])
def test_a_put_that_was_refused_for_a_moment_is_repeated(proxy, options, how):
    async def work(store):
        proxy.harm("PUT", how, times=2)
        ref = await store.put(MESSAGE)
        assert await store.read(ref) == MESSAGE

    on(options, work)


@pytest.mark.parametrize(
    ("how", "kind", "tries"),
    [
        ("drop", Kind.UNAVAILABLE, bucket.TRIES),
        ("silence", Kind.UNAVAILABLE, 2),  # the second meets what the first stored
        ("SlowDown", Kind.UNAVAILABLE, bucket.TRIES),
        ("AccessDenied", Kind.UNAVAILABLE, 1),
        ("NoSuchBucket", Kind.UNAVAILABLE, 1),
        ("QuotaExceeded", Kind.STORAGE_FULL, 1),
    ],
)
def test_a_put_that_fails_fails_all_who_wait_and_later_ones_work(
    proxy, options, how, kind, tries
):
    async def work(store):
        proxy.harm("PUT", how, times=1000)
        if how == "silence":
            proxy.harm("GET", "silence", times=1000)
        puts = [store.put(b"%d" % n + MESSAGE) for n in range(5)]
        failed = await asyncio.gather(*puts, return_exceptions=True)
        assert [error.kind for error in failed] == [kind] * 5
        assert proxy.count("PUT", "segments") in {tries, bucket.TRIES}
        assert await kind_of(store.put(LARGE)) is kind
        proxy.heal()
        ref = await store.put(MESSAGE)
        assert await store.read(ref) == MESSAGE

    on(options, work)


def test_an_object_that_is_not_as_written_is_written_again(proxy, options):
    async def work(store):
        proxy.harm("GET", "corrupt", match="segments")
        ref = await store.put(MESSAGE)
        assert await store.read(ref) == MESSAGE
        assert segments(options) == 2  # nothing names the first

    on(dataclasses.replace(options, verify=True), work)


def test_a_service_that_stops_is_used_again_when_it_is_back(proxy, options):
    async def work(store):
        ref = await store.put(MESSAGE)
        proxy.close()
        assert await kind_of(store.put(MESSAGE)) is Kind.UNAVAILABLE
        assert await kind_of(store.read(ref)) is Kind.UNAVAILABLE
        assert await kind_of(store.segments()) is Kind.UNAVAILABLE
        proxy.open()
        assert await store.read(ref) == MESSAGE
        assert await store.read(await store.put(b"next")) == b"next"

    on(options, work)


def test_closing_does_not_wait_for_what_cannot_succeed(proxy, options, monkeypatch):
    monkeypatch.setattr(bucket, "PAUSE", 60.0)

    async def run():
        store = await seaweedfs.S3BlobStore.open(options)
        proxy.close()
        before = store.bucket.puts
        put = asyncio.ensure_future(store.put(MESSAGE))
        await asyncio.to_thread(eventually, lambda: store.bucket.puts > before)
        async with asyncio.timeout(10):
            await store.close()
        assert await kind_of(put) is Kind.UNAVAILABLE

    asyncio.run(run())


# --- reading ---


@pytest.mark.parametrize(
    "how", ["truncate", "drip", "silence", "cut answer", "drop", "SlowDown", "corrupt"]
)
@pytest.mark.parametrize("content", [MESSAGE, LARGE], ids=["small", "large"])
def test_a_read_that_fails_once_is_repeated(proxy, options, how, content):
    if how == "drip":
        content = content[:20_000]  # what a second of patience is granted for

    async def work(store):
        ref = await store.put(content)
        proxy.harm("GET", how, match="segments")
        assert await store.read(ref) == content

    on(options, work)


@pytest.mark.parametrize(
    "how", ["truncate", "drop", "SlowDown", "AccessDenied", "NoSuchBucket", "corrupt"]
)
@pytest.mark.parametrize("content", [MESSAGE, LARGE], ids=["small", "large"])
def test_a_read_that_keeps_failing_is_a_temporary_error(proxy, options, how, content):
    async def work(store):
        ref = await store.put(content)
        proxy.harm("GET", how, times=1000)
        assert await kind_of(store.read(ref)) is Kind.UNAVAILABLE
        with pytest.raises(MailError) as caught:
            async for _ in store.stream(ref):
                pass
        assert caught.value.kind is Kind.UNAVAILABLE
        proxy.heal()
        assert await store.read(ref) == content

    on(options, work)


def test_an_object_that_is_gone_is_never_called_not_found(options):
    async def work(store):
        ref = await store.put(MESSAGE)
        key = f"{options.prefix}/{key_of(ref.segment)}"
        seaweedfs.site().client().delete_object(Bucket=options.bucket, Key=key)
        with pytest.raises(MailError, match="missing") as caught:
            await store.read(ref)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert await kind_of(store.verify_segment(ref.segment)) is Kind.UNAVAILABLE
        assert await kind_of(store.list_blobs(ref.segment)) is Kind.UNAVAILABLE

    on(options, work)


@pytest.mark.parametrize("how", ["truncate", "drop", "SlowDown"])
def test_upkeep_is_repeated_too(proxy, options, how):
    async def work(store):
        ref = await store.put(MESSAGE)
        proxy.harm("GET", how)
        assert len(await store.segments()) == 1
        proxy.harm("GET", how, match="segments")
        assert await store.list_blobs(ref.segment) == [ref]
        proxy.harm("GET", how, match="segments")
        (report,) = await verified(store)
        assert not report.damage
        proxy.harm("GET", how, match="segments")
        moved = await store.rewrite([ref])
        assert await store.read(moved[ref]) == MESSAGE
        if how != "truncate":
            proxy.harm("DELETE", how)
        await store.remove_segment(ref.segment)
        assert segments(options) == 1

    on(options, work)


# --- opening ---


def opening_fails(settings):
    """Return what is said when a store cannot be opened."""

    async def run():
        async with seaweedfs.opened(settings):
            pass

    with pytest.raises(MailError) as caught:
        asyncio.run(run())
    assert caught.value.kind in {Kind.UNAVAILABLE, Kind.INVALID}
    assert SECRET not in str(caught.value)
    assert seaweedfs.SECRET not in str(caught.value)
    return caught.value.text


def test_a_bucket_that_is_not_there_is_named(options):
    text = opening_fails(dataclasses.replace(options, bucket="no-such-bucket"))
    assert "there is no bucket no-such-bucket" in text
    assert options.endpoint in text


def test_credentials_that_are_wrong_are_named(options):
    for key, secret in (("nobody", SECRET), (seaweedfs.KEY, SECRET)):
        path = seaweedfs.credentials_file(key, secret)
        text = opening_fails(dataclasses.replace(options, credentials=path))
        assert f"the credentials in {path} are refused" in text


def test_credentials_that_may_only_read_are_refused(options):
    path = seaweedfs.credentials_file("reader")
    text = opening_fails(dataclasses.replace(options, credentials=path))
    assert "AccessDenied" in text


def test_a_credentials_file_that_is_wrong_is_named(options, tmp_path):
    path = tmp_path / "credentials"
    text = opening_fails(dataclasses.replace(options, credentials=str(path)))
    assert "No such file" in text
    for content in (f"{SECRET}\n", f"[default]\naws_secret_access_key={SECRET}\n"):
        path.write_text(content)
        text = opening_fails(dataclasses.replace(options, credentials=str(path)))
        assert "[default] with aws_access_key_id" in text


def test_credentials_that_were_renewed_are_read_again(options, tmp_path):
    path = tmp_path / "credentials"
    good = pathlib.Path(seaweedfs.credentials_file()).read_text()

    async def nothing(store):
        pass

    async def work(store):
        assert await kind_of(store.put(MESSAGE)) is Kind.UNAVAILABLE
        path.write_text("half of a")
        assert await kind_of(store.put(MESSAGE)) is Kind.UNAVAILABLE
        path.write_text(good)
        puts = (store.put(MESSAGE), store.put(LARGE))
        refs = await asyncio.gather(*puts)
        assert await store.read(refs[0]) == MESSAGE

    on(options, nothing)  # makes the identity
    path.write_text(pathlib.Path(seaweedfs.credentials_file("reader")).read_text())
    on(dataclasses.replace(options, credentials=str(path)), work)


def test_no_credentials_at_all_are_asked_for(options, monkeypatch, tmp_path):
    for name in seaweedfs.credentials():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    text = opening_fails(dataclasses.replace(options, credentials=""))
    assert "set AWS_ACCESS_KEY_ID" in text


def test_credentials_are_found_in_the_environment(options, monkeypatch):
    for name, value in seaweedfs.credentials().items():
        monkeypatch.setenv(name, value)

    async def work(store):
        assert await store.read(await store.put(MESSAGE)) == MESSAGE

    on(dataclasses.replace(options, credentials=""), work)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = opening_fails(dataclasses.replace(options, credentials=""))
    assert "found by boto3 (env)" in text


def test_the_way_may_be_encrypted_and_the_certificate_is_checked(
    options, monkeypatch, tmp_path
):
    for name in ("certificate", "other"):
        certificate, key = self_signed("s3.example.test")
        (tmp_path / name).write_bytes(certificate + key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "certificate")
    with Proxy(seaweedfs.site().port, tls) as proxy:
        through = dataclasses.replace(options, endpoint=proxy.endpoint)

        async def work(store):
            proxy.harm("PUT", "cut answer", times=2)
            refs = await asyncio.gather(store.put(MESSAGE), store.put(LARGE))
            assert await store.read(refs[0]) == MESSAGE
            assert await store.read(refs[1]) == LARGE
            assert segments(options) == 2

        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "certificate"))
        on(through, work)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "other"))
        assert "cannot be reached (SSLError)" in opening_fails(through)


def test_a_service_that_cannot_be_reached_is_named():
    endpoint = f"http://127.0.0.1:{free_port()}"
    url = seaweedfs.url("x", bucket="mail", endpoint=endpoint)
    for work in (open_blobs(url, SystemClock()), size_of(url)):
        with pytest.raises(MailError) as caught:
            asyncio.run(work)
        assert caught.value.kind is Kind.UNAVAILABLE
        assert caught.value.text.startswith(f"blobs: s3://mail/x at {endpoint}: it can")


def test_what_the_service_says_is_said_once():
    error = BucketError("InternalError", 500, "please try again")
    assert str(error) == "InternalError (500): please try again"
    assert str(BucketError("NoAnswer")) == "NoAnswer"


def test_boto3_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MailError) as caught:
        Errors()
    assert "pip install 'mailserverd[s3]'" in caught.value.text
