"""JMAP over HTTP: session, authentication, CORS, upload, download, events."""

from __future__ import annotations

import asyncio
import json
from unittest import mock

import pytest

from protocols.jmap import events, gate
from protocols.jmap.services import Limits, Settings
from protocols.jmap.snippets import make
from protocols.web import Body, Head, Response
from tests.lib.jmap import ALICE, USING, basic, message, with_jmap
from tests.lib.waiting import until


@with_jmap()
async def test_session(jmap):
    for path in ("/.well-known/jmap", "/jmap/session"):
        answer = await jmap.http("GET", path)
        assert answer.status == 200
        headers = dict(answer.headers)
        assert headers["Cache-Control"] == "no-cache, no-store, must-revalidate"
        found = json.loads(answer.body)
        assert found["username"] == ALICE
        assert found["apiUrl"] == "https://mail.example.org/jmap/api"
        for name in ("accountId", "blobId", "type", "name"):
            assert f"{{{name}}}" in found["downloadUrl"]
        assert "{accountId}" in found["uploadUrl"]
        for name in ("types", "closeafter", "ping"):
            assert f"{{{name}}}" in found["eventSourceUrl"]
        core = found["capabilities"]["urn:ietf:params:jmap:core"]
        assert core["maxCallsInRequest"] == 64
        assert core["maxSizeUpload"] == 50_000_000
        socket = found["capabilities"]["urn:ietf:params:jmap:websocket"]
        assert socket == {
            "url": "wss://mail.example.org/jmap/ws",
            "supportsPush": True,
        }
        account = found["accounts"][jmap.account]
        assert account["isPersonal"] is True
        mail = account["accountCapabilities"]["urn:ietf:params:jmap:mail"]
        assert mail["maxMailboxDepth"] == 20
        assert mail["mayCreateTopLevelMailbox"] is True
        assert "urn:ietf:params:jmap:vacationresponse" not in found["capabilities"]
    answer = await jmap.post({"using": USING, "methodCalls": []})
    assert answer == {"methodResponses": [], "sessionState": found["state"]}


@with_jmap()
async def test_urls_follow_the_host_as_asked_for(jmap):
    async def base(**headers):
        answer = await jmap.http("GET", "/jmap/session", **headers)
        return json.loads(answer.body)["apiUrl"].removesuffix("/jmap/api")

    assert await base(host="[::1]:8080") == "https://[::1]:8080"
    assert await base(host="a.example:1") == "https://a.example:1"
    assert "<" not in await base(host="<script>")


@with_jmap(settings=Settings(public_url="https://public.example/"))
async def test_urls_of_the_configuration(jmap):
    answer = await jmap.http("GET", "/jmap/session")
    found = json.loads(answer.body)
    assert found["apiUrl"] == "https://public.example/jmap/api"
    assert found["capabilities"]["urn:ietf:params:jmap:websocket"]["url"] == (
        "wss://public.example/jmap/ws"
    )


@with_jmap()
async def test_authentication(jmap):
    for value, status in (
        ("", 401),
        ("Basic", 401),
        ("Basic !!!", 401),
        ("Basic bm9jb2xvbg==", 401),
        (basic(password="wrong"), 401),
        (basic(user="nobody@example.org"), 401),
        ("Bearer x", 401),
    ):
        answer = await jmap.http("GET", "/jmap/session", authorization=value)
        assert answer.status == status, value
        headers = dict(answer.headers)
        assert headers["WWW-Authenticate"].startswith("Basic realm=")
        assert headers["Content-Type"] == "application/problem+json"
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert ALICE not in answer.body.decode()


@with_jmap()
async def test_guessing_is_throttled(jmap):
    seen = set()
    for number in range(40):
        answer = await jmap.http(
            "GET", "/jmap/session", authorization=basic(password=f"wrong {number}")
        )
        seen.add(answer.status)
        if answer.status == 429:
            assert dict(answer.headers)["Retry-After"]
            break
    assert seen == {401, 429}


@with_jmap()
async def test_passwords_need_tls(jmap):
    head = Head("GET", "/jmap/session", "", {"authorization": basic()}, secure=False)
    answer = await jmap.site.handle(head, Body())
    assert answer.status == 403


@with_jmap()
async def test_preflight_needs_no_authentication(jmap):
    for path in ("/jmap/api", "/jmap/upload/a1", "/.well-known/jmap"):
        answer = await jmap.http("OPTIONS", path, authorization="")
        assert answer.status == 204
        headers = dict(answer.headers)
        assert "Authorization" in headers["Access-Control-Allow-Headers"]
        assert "POST" in headers["Access-Control-Allow-Methods"]


@with_jmap()
async def test_routes(jmap):
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/jmap/", 404),
        ("GET", "/jmap/api", 405),
        ("POST", "/jmap/session", 405),
        ("HEAD", "/jmap/session", 200),
        ("GET", "/jmap/upload/a1", 405),
        ("GET", "/jmap/download/a1/x", 404),
        ("GET", "/jmap/download/a1/x/y", 404),
        ("GET", "/jmap/download/../../etc/passwd", 404),
    ):
        answer = await jmap.http(method, path)
        assert answer.status == status, (method, path)
    assert dict((await jmap.http("GET", "/jmap/api")).headers)["Allow"]


@with_jmap()
async def test_requests_that_are_refused(jmap):
    good = json.dumps({"using": USING, "methodCalls": []}).encode()
    for body, kind, content_type in (
        (good, "notJSON", "text/plain"),
        (good, "notJSON", "application/jsonx"),
        (good, "notJSON", ""),
        (b"{", "notJSON", "application/json"),
        (b"[]", "notRequest", "application/json; charset=utf-8"),
        (
            b'{"using":["x:y"],"methodCalls":[]}',
            "unknownCapability",
            "application/json",
        ),
    ):
        answer = await jmap.http("POST", "/jmap/api", body, content_type=content_type)
        assert answer.status == 400
        problem = json.loads(answer.body)
        assert problem["type"] == f"urn:ietf:params:jmap:error:{kind}"
        assert problem["status"] == 400
    calls = [["Core/echo", {}, "c"]] * 65
    body = json.dumps({"using": USING, "methodCalls": calls}).encode()
    answer = await jmap.http("POST", "/jmap/api", body, content_type="application/json")
    assert json.loads(answer.body)["limit"] == "maxCallsInRequest"


@with_jmap(settings=Settings(limits=Limits(max_concurrent_requests=2)))
async def test_concurrent_requests_wait_for_their_turn(jmap):
    waiting = asyncio.Event()
    running = 0
    most = 0
    listed = jmap.services.mailboxes.list

    async def slow(access):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await waiting.wait()
        running -= 1
        return await listed(access)

    jmap.services.mailboxes.list = slow
    body = {
        "using": USING,
        "methodCalls": [["Mailbox/get", {"accountId": jmap.account}, "c"]],
    }
    some = [asyncio.ensure_future(jmap.post(body)) for _ in range(2 + gate.QUEUE)]
    await until(lambda: running == 2)
    answer = await jmap.http(
        "POST", "/jmap/api", json.dumps(body).encode(), content_type="application/json"
    )
    assert answer.status == 429
    assert json.loads(answer.body)["limit"] == "maxConcurrentRequests"
    waiting.set()
    await asyncio.gather(*some)
    assert most == 2
    await jmap.post(body)


def test_a_gate_hands_places_over():
    async def main():
        doors = gate.Gate(1)
        assert doors.enter(1)
        assert doors.enter(2)
        assert not await doors.enter_soon(1, patience=0.01)
        waiter = asyncio.ensure_future(doors.enter_soon(1))
        gone = asyncio.ensure_future(doors.enter_soon(1))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.sleep(0)
        doors.leave(1)
        assert await gone
        doors.leave(1)
        doors.leave(2)
        assert doors._inside == {}
        assert not any(doors._queues.values())

    asyncio.run(main())


# --- blobs --------------------------------------------------------------------------


@with_jmap()
async def test_upload_and_download(jmap):
    data = bytes(range(256)) * 100
    answer = await jmap.http(
        "POST", f"/jmap/upload/{jmap.account}/", data, content_type="image/png"
    )
    assert answer.status == 201
    made = json.loads(answer.body)
    assert made["accountId"] == jmap.account
    assert made["type"] == "image/png"
    assert made["size"] == len(data)
    again = await jmap.upload(data)
    assert again == made["blobId"]
    path = f"/jmap/download/{jmap.account}/{again}/K%C3%A4se%20%22x%22.png"
    answer = await jmap.http("GET", path + "?accept=image/png")
    assert (answer.status, answer.length) == (200, len(data))
    headers = dict(answer.headers)
    assert headers["Content-Type"] == "image/png"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("sandbox")
    assert headers["Cache-Control"] == "private, immutable, max-age=31536000"
    disposition = headers["Content-Disposition"]
    assert disposition.startswith('attachment; filename="K_se _x_.png"')
    assert "filename*=UTF-8''K%C3%A4se%20%22x%22.png" in disposition
    assert await content(answer) == data
    answer = await jmap.http("GET", path, if_none_match=headers["ETag"])
    assert answer.status == 304


async def content(answer: Response) -> bytes:
    if answer.stream is None:
        return answer.body
    return b"".join([chunk async for chunk in answer.stream])


@with_jmap()
async def test_ranges(jmap):
    blob = await jmap.upload(b"0123456789")
    path = f"/jmap/download/{jmap.account}/{blob}/x"
    for given, status, data, told in (
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ):
        answer = await jmap.http("GET", path, range=given)
        assert (answer.status, await content(answer)) == (status, data), given
        assert dict(answer.headers).get("Content-Range") == told


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("text%2Fhtml", "text/html"),
        ("text/plain%3B%20charset%3Dutf-8", "text/plain; charset=utf-8"),
        ("text/html%0D%0AX-Evil:%201", "application/octet-stream"),
        ("nonsense", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_types_of_downloads(tmp_path, asked, given):
    @with_jmap()
    async def test(jmap):
        blob = await jmap.upload(b"x")
        path = f"/jmap/download/{jmap.account}/{blob}/%0D%0Aevil"
        answer = await jmap.http("GET", f"{path}?accept={asked}")
        assert dict(answer.headers)["Content-Type"] == given
        assert all("\r" not in v and "\n" not in v for _, v in answer.headers)

    test(tmp_path)


@with_jmap()
async def test_ranges_of_blobs_stay_inside(jmap):
    blob = await jmap.upload(b"0123456789")
    digest = blob[1:]
    for name, status in (
        (f"p{digest}-2-5-n", 200),
        (f"p{digest}-2-11-n", 404),
        (f"p{digest}-5-2-n", 404),
        ("p" + "0" * 64 + "-0-1-n", 404),
        ("e1", 404),
        ("", 404),
    ):
        answer = await jmap.http("GET", f"/jmap/download/{jmap.account}/{name}/x")
        assert answer.status == status, name


@with_jmap()
async def test_what_is_too_large_names_its_limit_to_any_origin(jmap):
    for path, name in (
        (f"/jmap/upload/{jmap.account}", "maxSizeUpload"),
        ("/jmap/api", "maxSizeRequest"),
    ):
        answer = jmap.site.too_large(Head("POST", path))
        problem = json.loads(answer.body)
        assert answer.status == problem["status"] == 413
        assert problem["limit"] == name
        assert dict(answer.headers)["Access-Control-Allow-Origin"] == "*"


@with_jmap(settings=Settings(limits=Limits(max_concurrent_upload=1)))
async def test_uploads_are_admitted_one_by_one(jmap):
    head = Head(
        "POST",
        f"/jmap/upload/{jmap.account}",
        headers={"authorization": basic()},
        secure=True,
    )
    assert jmap.site.body_limit(head) == 50_000_000
    release = await jmap.site.admit(head)
    refused = await jmap.site.admit(head)
    assert refused.status == 429
    assert json.loads(refused.body)["limit"] == "maxConcurrentUpload"
    release()
    assert callable(await jmap.site.admit(head))
    stranger = Head("POST", head.path, secure=True)
    assert (await jmap.site.admit(stranger)).status == 401


# --- events -------------------------------------------------------------------------


def parse_event(data: bytes):
    fields = dict(
        line.split(": ", 1)
        for line in data.decode().split("\r\n")
        if line[:1] != ":" and line
    )
    if "data" in fields:
        fields["data"] = json.loads(fields["data"])
    return fields


async def open_events(jmap, query, **headers):
    answer = await jmap.http("GET", f"/jmap/eventsource?{query}", **headers)
    assert answer.status == 200, answer.body
    assert dict(answer.headers)["Content-Type"] == "text/event-stream"
    assert (await anext(answer.stream)).startswith(b":")
    return answer.stream


@with_jmap()
async def test_state_events(jmap):
    stream = await open_events(jmap, "types=Email,Mailbox&closeafter=no&ping=0")
    await jmap.add(message())
    event = parse_event(await anext(stream))
    assert event["event"] == "state"
    assert event["data"]["@type"] == "StateChange"
    assert set(event["data"]["changed"][jmap.account]) == {"Email", "Mailbox"}
    await stream.aclose()
    await jmap.add(message("Missed"))
    stream = await open_events(
        jmap, "types=*&closeafter=state&ping=0", last_event_id=event["id"]
    )
    missed = parse_event(await anext(stream))
    assert "EmailDelivery" in missed["data"]["changed"][jmap.account]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert not jmap.host.changes._bus._watched


@with_jmap()
async def test_ping_events(jmap):
    source = events._Source(jmap.services, None, 0, once=False)
    source._ping = 0.05
    jmap.services.authenticator.still_valid = lambda _: True
    source._who = type("Who", (), {"account": jmap.access.account})
    stream = source.run(frozenset({"Email"}), "")
    await anext(stream)
    event = parse_event(await anext(stream))
    assert event == {"event": "ping", "data": {"interval": 0.05}}
    await stream.aclose()


@with_jmap()
async def test_event_sources_that_are_refused(jmap):
    for query in (
        "closeafter=no&ping=0",
        "types=*&closeafter=never&ping=0",
        "types=*&closeafter=no&ping=-1",
        "types=*&closeafter=no&ping=x",
    ):
        answer = await jmap.http("GET", f"/jmap/eventsource?{query}")
        assert answer.status == 400, query


@with_jmap()
async def test_slow_readers_get_changes_as_one(jmap):
    told = set()
    emit = events._Source._emit

    def noted(source, change, token):
        emit(source, change, token)
        told.update(change["changed"][jmap.account])

    with mock.patch.object(events._Source, "_emit", noted):
        stream = await open_events(jmap, "types=*&closeafter=no&ping=0")
        for number in range(5):
            await jmap.add(message(f"{number}"))
        await until(lambda: "Email" in told)
        await jmap.call("Identity/set", create={"k": {"email": ALICE}})
        await until(lambda: "Identity" in told)
    event = parse_event(await anext(stream))
    got = await jmap.call("Email/get", ids=[])
    changed = event["data"]["changed"][jmap.account]
    assert changed["Email"] == got["state"]
    assert "Identity" in changed
    await stream.aclose()


# --- snippets -----------------------------------------------------------------------


@with_jmap()
async def test_snippets(jmap):
    body = "intro " * 40 + "the foosball competition & <fun> will be great " + "x " * 99
    first = await jmap.add(message("The Foosball & co", body=body))
    other = await jmap.add(message("Nothing", body="nothing here"))
    result = await jmap.call(
        "SearchSnippet/get",
        filter={"text": "foosball"},
        emailIds=[first, other, "e99"],
    )
    assert result["notFound"] == ["e99"]
    by_id = {one["emailId"]: one for one in result["list"]}
    assert by_id[first]["subject"] == "The <mark>Foosball</mark> &amp; co"
    preview = by_id[first]["preview"]
    assert "<mark>foosball</mark> competition &amp; &lt;fun&gt;" in preview
    assert len(preview.encode()) <= 255
    assert by_id[other] == {"emailId": other, "subject": None, "preview": None}
    for filter_, subject, found in (
        ({"subject": "foosball"}, True, False),
        ({"body": '"foosball competition"'}, False, True),
        ({"body": "compet*"}, False, True),
        ({"operator": "NOT", "conditions": [{"text": "foosball"}]}, False, False),
        (None, False, False),
        ({"minSize": 1}, False, False),
    ):
        result = await jmap.call("SearchSnippet/get", filter=filter_, emailIds=[first])
        [snippet] = result["list"]
        assert (snippet["subject"] is not None) is subject, filter_
        assert (snippet["preview"] is not None) is found, filter_
        assert result["notFound"] is None


def test_snippets_of_text_without_spaces():
    item = (1, b'{"subject":"x"}', "今日は東京都に行きました。" * 3)
    [found] = make((("text", "東京", False),), [item])
    assert "<mark>東京</mark>" in found["preview"]
    [found] = make((("text", "大阪", False),), [item])
    assert found["preview"] is None


def test_long_words_leave_no_room_for_a_snippet():
    item = (1, b'{"subject":"x"}', "a" * 1000)
    [found] = make((("body", "a" * 64, True),), [item])
    assert found["preview"] is None
