"""JMAP requests: any octets give a value or the protocol's own error."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from typing import Any

import orjson

from mailserverd.mail import mime
from mailserverd.mail.build import EmailSpec, build_email
from mailserverd.mail.encode import ComposeError
from protocols.jmap import (
    email_create,
    email_filter,
    email_parts,
    email_properties,
    email_update,
    identity,
    submission,
    submission_filter,
)
from protocols.jmap.blobs import Wanted, _headers, _range
from protocols.jmap.methods import METHODS
from protocols.jmap.push import parse_seen
from protocols.jmap.wire import (
    arguments,
    dates,
    headers,
    ids,
    ijson,
    patch,
    references,
    request,
    state,
)
from protocols.jmap.wire.errors import MethodError, RequestError, SetError
from protocols.jmap.wire.request import Invocation

ACCOUNT = {"accountId": "a1"}
QUERY = {
    "filter": {
        "operator": "OR",
        "conditions": [
            {"inMailbox": "m1", "text": "x", "before": "2020-01-01T00:00:00Z"},
            {"header": ["x", "y"], "hasKeyword": "$seen", "minSize": 3},
        ],
    },
    "sort": [{"property": "hasKeyword", "keyword": "$seen", "isAscending": False}],
    "position": -3,
}
DRAFT = {
    "mailboxIds": {"m1": True},
    "keywords": {"$draft": True},
    "from": [{"name": "Jö", "email": "j@x.example"}],
    "header:X-A:asText:all": ["a", "b"],
    "header:Cc:asGroupedAddresses": [{"name": "G", "addresses": [{"email": "a@b"}]}],
    "sentAt": "2020-01-01T00:00:00+01:00",
    "bodyStructure": {
        "type": "multipart/mixed",
        "subParts": [
            {"partId": "1", "header:Content-Language": "en", "cid": "x@y"},
            {"partId": "2", "type": "text/html", "name": "ä.html"},
        ],
    },
    "bodyValues": {"1": {"value": "Grüße\r\n"}, "2": {"value": "<b>"}},
}
REFERENCE = {"resultOf": "0", "name": "Email/query", "path": "/list/*/ids/*"}
ENVELOPE = {
    "mailFrom": {"email": "a@b.example", "parameters": {"RET": "FULL", "HOLDFOR": "5"}},
    "rcptTo": [{"email": "c@d.example", "parameters": {"NOTIFY": "NEVER"}}],
}
RESPONSES = [
    Invocation("Email/query", {"ids": ["e1"], "list": [{"ids": [[1], 2]}]}, "0"),
    Invocation("Email/get", {"list": [ijson.Rendered(b'{"id":"e1"}')]}, "1"),
]


def _seed(*calls: tuple[str, Any]) -> bytes:
    named = [[name, ACCOUNT | args, str(n)] for n, (name, args) in enumerate(calls)]
    return json.dumps({"using": ["x"], "methodCalls": named}).encode()


SEEDS = [
    _seed(("Email/query", QUERY), ("Email/get", {"#ids": REFERENCE})),
    _seed(("Email/get", {"ids": ["e1"], "properties": ["header:From:asAddresses"]})),
    _seed(("Email/set", {"create": {"k": DRAFT}})),
    _seed(("Email/set", {"update": {"e1": {"keywords/a~1b": True, "mailboxIds": {}}}})),
    _seed(("Mailbox/set", {"update": {"m1": {"name": "x"}}, "destroy": ["m2"]})),
    _seed(("EmailSubmission/set", {"create": {"s": {"envelope": ENVELOPE}}})),
    b'{"@type":"WebSocketPushEnable","dataTypes":["Email"],"pushState":"1-2-3"}',
    b'{"@type":"Request","id":"1","using":[],"methodCalls":[],"createdIds":{"a":"b"}}',
    b"header:List-Post:asURLs:all",
    b"p" + b"0" * 64 + b"-1-20-b-0-3-n",
    b"/list/*/a~0b~1c/0",
    b"2014-10-30T06:12:00.5+08:00",
    b"bytes=1-2",
]
ODD = [
    *(
        None,
        True,
        False,
        0,
        -1,
        2**53,
        1.5,
        "",
        "x",
        "#x",
        "\x00",
        "\r\nX: y",
        "ä" * 999,
    ),
    *([], {}, [[]], [{}], {"": ""}, ["x"], {"a/b": None}, {"email": "a@b"}, "e1", "m1"),
    *([{"email": "x y"}], [{"partId": "1"}], [{"blobId": "b"}], {"1": {"value": "x"}}),
    *(
        {"type": "multipart/x", "subParts": []},
        "multipart/mixed",
        "text/html",
        "/",
        "a/b",
    ),
    *({"operator": "NOT", "conditions": [{}]}, "=?utf-8?q?x?=", "<>", '"', "a;b=c"),
]
NAMES = [
    *("from", "header:From", "header:X:asDate", "header:Content-Type", "textBody"),
    *("htmlBody", "attachments", "bodyStructure", "bodyValues", "subParts", "charset"),
    *("partId", "blobId", "type", "name", "cid", "language", "location", "disposition"),
    *("keywords", "keywords/x", "mailboxIds/m1", "operator", "conditions", "property"),
    *(
        "#ids",
        "ids",
        "filter",
        "sort",
        "",
        "header:",
        "header:X",
        "references",
        "sentAt",
    ),
    *(
        "header:X:asURLs:all",
        "header:Subject:asText",
        "envelope",
        "parameters",
        "email",
    ),
]
OWN = (RequestError, MethodError, SetError)
METHODS_BY_NAME = {method.name: method for method in METHODS}


class _Limits:
    max_objects_in_get = 1000


class _Context:
    limits = _Limits

    @staticmethod
    def real(text: str) -> str:
        return text


def fuzz_one(data: bytes) -> None:
    """Every parser refuses with its own error or yields something that is right."""
    _texts(data.decode("utf-8", "replace"))
    try:
        document = ijson.loads(data)
    except RequestError as error:
        ijson.problem(error)
        _request(_damaged(random.Random(data)))
        return
    assert ijson.depth(document) <= ijson.MAX_DEPTH
    assert orjson.loads(data) == document
    with contextlib.suppress(RequestError):
        request.parse_socket_message(document)
    _request(document)


def _damaged(rng: random.Random) -> Any:
    """Return a seed with a few of its values replaced by others."""
    document = orjson.loads(rng.choice(SEEDS[:6]))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place, key = _anywhere(rng, document["methodCalls"])
        value = copy.deepcopy(rng.choice(ODD))
        if isinstance(place, dict) and rng.random() < 0.4:
            place[rng.choice(NAMES)] = value
        else:
            place[key] = value
    return document


def _anywhere(rng: random.Random, calls: list[Any]) -> tuple[Any, Any]:
    """Return a container inside the arguments of a call, and one of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [call[1] for call in calls]
    while waiting:
        here = waiting.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here)
        for key, value in items:
            found.append((here, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return rng.choice(found) if found else (calls[0], 1)


def _request(document: Any) -> None:
    try:
        wanted = request.parse(document, 64)
    except RequestError:
        return
    for call in wanted.calls:
        _call(call)


def _texts(text: str) -> None:
    for parse in (ids.parse_email, ids.parse_account, dates.parse_utc, headers.parse):
        parse(text)
    blob = ids.parse_blob(text)
    assert blob is None or blob.render() == text
    assert "\r" not in str(_headers(Wanted("a1", "x", text, text))[0])
    _range(text, 10)
    parse_seen(text)
    for attempt in (
        lambda: state.since(text, 1, 5),
        lambda: references.pointer(RESPONSES[0].arguments, text),
        lambda: patch.split({text: 1, "a/b": 2}),
    ):
        with contextlib.suppress(OWN):
            attempt()


def _call(call: Invocation) -> None:
    method = METHODS_BY_NAME.get(call.name)
    if method is None or method.takes is None:
        return
    try:
        args = references.resolve(call.arguments, RESPONSES)
        args = arguments.parse(method.takes, args)
    except MethodError as error:
        orjson.dumps(error.arguments())
        return
    context: Any = _Context
    for attempt in (
        lambda: email_filter.parse(context, args.get("filter")),
        lambda: email_filter.sort(args.get("sort")),
        lambda: submission_filter.parse(context, args.get("filter")),
        lambda: email_properties.plan(args, ()) if "bodyProperties" in args else None,
    ):
        with contextlib.suppress(OWN):
            attempt()
    for given in (args.get("create") or {}).values():
        _create(given)
    for given in (args.get("update") or {}).values():
        for change in (email_update.read, _apply):
            try:
                change(given)
            except SetError as error:
                orjson.dumps(error.object())


def _apply(given: dict[str, Any]) -> None:
    patch.apply({"name": "x", "keywords": {"a": True}}, given)


def _create(given: dict[str, Any]) -> None:
    identity.checked(given)
    try:
        submission.read_envelope(given.get("envelope"), 100)
    except SetError as error:
        orjson.dumps(error.object())
    try:
        draft = email_create.read(given)
    except SetError as error:
        orjson.dumps(error.object())
        return
    blobs = {leaf.blob_id: b"blob" for leaf in email_parts.leaves(draft.body)}
    spec = EmailSpec(draft.headers, email_parts.fill(draft.body, blobs))
    try:
        raw = build_email(spec, now=0, hostname="x.example")
    except ComposeError:
        return
    assert b"\r" not in raw.replace(b"\r\n", b"")
    assert b"\n" not in raw.replace(b"\r\n", b"")
    mime.parse(raw)
