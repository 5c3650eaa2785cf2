"""DKIM: published vectors, dkimpy both ways, and everything that must not pass."""

from __future__ import annotations

import asyncio
import base64
import itertools
import pathlib
from typing import Any

import dkim as dkimpy
import hypothesis
import hypothesis.strategies as st
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from auth.mail import canonical, dkim, keys
from auth.mail.dkim import DkimResult
from tests.lib.zones import FAILED, ZoneResolver

SAMPLES = pathlib.Path(__file__).parents[4] / "shared/corpora/auth/mail-auth/resources"
NOW = 1_700_000_000.0
NAME = ("s._domainkey.example.com", "TXT")

MESSAGE = (
    b"Received: from a.example.net by mx.example.com; Fri, 11 Jul 2003 21:01:54\r\n"
    b"From: Joe  SixPack <joe@example.com>\r\n"
    b"To: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner\r\n\t ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n"
    b"\r\n"
    b"Hi.  \r\n\r\nWe lost\tthe game.   Are you hungry yet?\r\n\r\nJoe.\r\n\r\n\r\n"
)

RSA_PEM, RSA_RECORD = keys.generate_key("rsa")
ED_PEM, ED_RECORD = keys.generate_key("ed25519")
RSA_KEY, ED_KEY = keys.load_private_key(RSA_PEM), keys.load_private_key(ED_PEM)
BOTH = pytest.mark.parametrize(
    ("key", "record"), [(RSA_KEY, RSA_RECORD), (ED_KEY, ED_RECORD)], ids=["rsa", "ed"]
)


def verify(message: bytes, *records: Any, now: float = NOW) -> list[DkimResult]:
    texts = [r.encode() if isinstance(r, str) else r for r in records]
    found = texts[0] if texts == [FAILED] else texts
    resolver = ZoneResolver({NAME: found} if records else {})
    return asyncio.run(dkim.verify(resolver, message, now))


def sign(message: bytes = MESSAGE, key: keys.PrivateKey = ED_KEY, **more: Any) -> bytes:
    headers = more.get("headers", dkim.SIGNED)
    return dkim.sign(message, "example.com", "s", key, headers, NOW) + message


def outcome(message: bytes, *records: Any, now: float = NOW) -> tuple[str, str]:
    (result,) = verify(message, *records, now=now)
    return result.result, result.reason


# --- vectors


# RFC 8463 appendix A: the keys of A.2 and the message of A.3
VECTOR_KEYS = {
    ("brisbane._domainkey.football.example.com", "TXT"): [
        b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    ],
    ("test._domainkey.football.example.com", "TXT"): [
        b"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWR"
        b"iGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutAC"
        b"DfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3"
        b"Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
    ],
}
VECTOR = b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")


def test_rfc_8463_vector() -> None:
    resolver = ZoneResolver(VECTOR_KEYS)
    found = asyncio.run(dkim.verify(resolver, memoryview(VECTOR), NOW))
    assert found == [
        DkimResult(
            "pass",
            "football.example.com",
            "brisbane",
            "ed25519-sha256",
            header_b="/gCrinpc",
        ),
        DkimResult(
            "pass", "football.example.com", "test", "rsa-sha256", header_b="F45dVWDf"
        ),
    ]


@pytest.mark.skipif(not SAMPLES.exists(), reason="the shared samples are not here")
@pytest.mark.parametrize(
    ("sample", "now"),
    [
        *((f"dkim/00{n}.txt", 1_667_900_000) for n in range(1, 7)),
        *((f"arc/00{n}.txt", 1_674_200_000) for n in range(1, 3)),
    ],
)
def test_samples_of_real_mail(sample: str, now: int) -> None:
    text = (SAMPLES / sample).read_bytes().replace(b"\r\n", b"\n")
    zone, _, message = text.partition(b"\n\n")
    records: dict[tuple[str, str], Any] = {}
    for line in zone.decode().splitlines():
        name, _, record = line.partition(" ")
        records.setdefault((name, "TXT"), []).append(record.encode())
    message = message.replace(b"\n", b"\r\n")
    found = asyncio.run(dkim.verify(ZoneResolver(records), message, now))
    theirs = [dkimpy_says(message, n, records) for n in range(len(found))]
    if b" x=" in message:  # dkimpy has no clock to set
        theirs = [True]
    assert [r.result == "pass" for r in found] == theirs
    assert any(theirs)


def dkimpy_says(message: bytes, index: int, records: Any) -> bool:
    try:
        verifier = dkimpy.DKIM(message)
        return bool(verifier.verify(index, lambda name, **_: at(records, name)))
    except dkimpy.DKIMException:
        return False


def at(records: dict[tuple[str, str], Any], name: bytes | str) -> bytes | None:
    text = name.decode() if isinstance(name, bytes) else name
    found = records.get((text.removesuffix("."), "TXT"))
    return bytes(found[0]) if found else None


# --- dkimpy, both ways


@BOTH
def test_dkimpy_verifies_ours(key: keys.PrivateKey, record: str) -> None:
    signed = sign(key=key)
    assert dkimpy.verify(signed, dnsfunc=lambda *_, **__: record.encode())
    broken = signed.replace(b"hungry", b"angry!")
    assert not dkimpy.verify(broken, dnsfunc=lambda *_, **__: record.encode())


def ed_seed() -> bytes:
    assert isinstance(ED_KEY, ed25519.Ed25519PrivateKey)
    return base64.b64encode(ED_KEY.private_bytes_raw())


@pytest.mark.parametrize("algorithm", [b"rsa-sha256", b"ed25519-sha256"])
@pytest.mark.parametrize(
    "canonicalize", list(itertools.product((b"simple", b"relaxed"), repeat=2))
)
def test_we_verify_dkimpys(algorithm: bytes, canonicalize: tuple[bytes, bytes]) -> None:
    is_rsa = algorithm.startswith(b"rsa")
    field = dkimpy.sign(
        MESSAGE,
        b"s",
        b"example.com",
        RSA_PEM if is_rsa else ed_seed(),
        canonicalize=canonicalize,
        signature_algorithm=algorithm,
    )
    record = RSA_RECORD if is_rsa else ED_RECORD
    assert outcome(field + MESSAGE, record, now=9e9) == ("pass", "")
    assert outcome(field + MESSAGE + b"x", record, now=9e9)[0] == "fail"


# --- our own


@BOTH
def test_sign_and_verify(key: keys.PrivateKey, record: str) -> None:
    (found,) = verify(sign(key=key), record)
    assert (found.result, found.domain, found.selector) == ("pass", "example.com", "s")
    assert found.algorithm == f"{keys.kind_of(key)}-sha256"
    assert len(found.header_b) == 8


def test_signature_lines_are_short_and_ours() -> None:
    field = dkim.sign(MESSAGE, "example.com", "s", RSA_KEY, dkim.SIGNED, NOW)
    assert field.endswith(b"\r\n")
    assert all(len(line) <= 78 for line in field.split(b"\r\n"))
    assert b"t=1700000000;" in field


@pytest.mark.parametrize(
    "added",
    [
        b"From: x@evil.example\r\n",
        b"Subject: other\r\n",
        b"Content-Type: text/html\r\n",
    ],
)
def test_oversigned_fields_cannot_be_added(added: bytes) -> None:
    assert outcome(added + sign(), ED_RECORD)[0] == "fail"
    assert outcome(b"X-Spam: no\r\n" + sign(), ED_RECORD)[0] == "pass"


def test_fields_sign_from_the_bottom() -> None:
    twice = b"To: a@example.net\r\n" + MESSAGE
    assert outcome(sign(twice), ED_RECORD)[0] == "pass"
    signed = sign(twice).replace(b"To: a@example.net\r\n", b"To: b@example.net\r\n")
    assert outcome(signed, ED_RECORD)[0] == "fail"


def test_no_from_no_signature() -> None:
    with pytest.raises(ValueError, match="From"):
        dkim.sign(b"To: x\r\n\r\n", "example.com", "s", ED_KEY, dkim.SIGNED, NOW)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.binary(max_size=200), st.binary(max_size=40))
def test_any_bytes_round_trip(body: bytes, subject: bytes) -> None:
    subject = subject.replace(b"\r", b"").replace(b"\n", b"")
    message = b"From: a@example.com\r\nSubject: " + subject + b"\r\n\r\n" + body
    assert outcome(sign(message), ED_RECORD)[0] == "pass"


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(st.data())
def test_a_changed_octet_does_not_pass(data: st.DataObject) -> None:
    signed = SIGNED_ONCE
    index = data.draw(st.integers(0, len(signed) - 1))
    value = data.draw(st.integers(0, 255))
    changed = signed[:index] + bytes([value]) + signed[index + 1 :]
    results = [r.result for r in verify(changed, ED_RECORD)]
    if "pass" in results:
        assert equivalent(changed) == equivalent(signed)


SIGNED_ONCE = sign()


def equivalent(message: bytes) -> list[bytes]:
    """What relaxed/relaxed protects: of our field the tags, of signed ones the text."""
    header = canonical.split_header(message)
    wanted = {name.lower().encode() for name in dkim.SIGNED} | {b"dkim-signature"}
    kept = [
        b"".join(canonical.relax_field(field).split())
        for name, places in sorted(header.names.items())
        for field in (header.fields[place] for place in places)
        if name in wanted
    ]
    return [*kept, canonical.body_hash(message, header.body_start, relaxed=True)[0]]


def test_unsigned_is_no_result() -> None:
    assert verify(MESSAGE) == []
    assert verify(b"") == []


def test_many_signatures_are_limited() -> None:
    signed = MESSAGE
    field = dkim.sign(MESSAGE, "example.com", "s", ED_KEY, dkim.SIGNED, NOW)
    signed = field * 30 + MESSAGE
    found = verify(signed, ED_RECORD)
    assert [r.result for r in found] == ["pass"] * dkim.MAX_SIGNATURES


def test_large_messages_are_offloaded() -> None:
    calls = []

    async def offload(work: Any, *args: Any) -> Any:
        calls.append(work)
        return work(*args)

    async def run(message: bytes) -> str:
        resolver = ZoneResolver({NAME: [ED_RECORD.encode()]})
        (found,) = await dkim.verify(resolver, message, NOW, offload=offload)
        return found.result

    assert asyncio.run(run(sign())) == "pass"
    assert not calls
    large = sign(MESSAGE + b"line\r\n" * 100_000)
    assert asyncio.run(run(large)) == "pass"
    assert len(calls) == 1


# --- what must not pass


def resigned(**tags: str | None) -> bytes:
    """A correct Ed25519 signature over a field with changed tags."""
    length = tags.pop("l", None)
    header = canonical.split_header(MESSAGE)
    body, _ = canonical.body_hash(MESSAGE, header.body_start, relaxed=True)
    found: dict[str, str | None] = {
        "v": "1",
        "a": "ed25519-sha256",
        "c": "relaxed/relaxed",
        "d": "example.com",
        "s": "s",
        "h": "From:To",
        "l": length,
        "bh": base64.b64encode(body).decode(),
    }
    found |= tags
    pairs = [f"{name}={value}" for name, value in found.items() if value is not None]
    field = f"DKIM-Signature: {'; '.join(pairs)}; b=".encode()
    names = [n.strip().lower().encode() for n in (found["h"] or "").split(":")]
    data = dkim._signed_data(header, names, field, {}, simple=False)
    digest = canonical.hashlib.sha256(data).digest()
    signature = keys.sign_data(ED_KEY, data, digest)
    return field + base64.b64encode(signature) + b"\r\n" + MESSAGE


CANONICAL_LENGTH = canonical.body_hash(
    MESSAGE, canonical.split_header(MESSAGE).body_start, relaxed=True
)[1]


@pytest.mark.parametrize(
    ("tags", "result", "reason"),
    [
        ({}, "pass", ""),
        ({"i": "@example.com"}, "pass", ""),
        ({"i": "joe@news.example.com"}, "pass", ""),
        ({"i": "@notexample.com"}, "permerror", "i= is not within d="),
        ({"i": "@com"}, "permerror", "i= is not within d="),
        ({"v": "2"}, "neutral", "unknown version"),
        ({"v": None}, "neutral", "v= is missing"),
        ({"d": None}, "neutral", "d= is missing"),
        ({"bh": None}, "neutral", "bh= is missing"),
        ({"bh": "!"}, "neutral", "bad base64"),
        ({"a": "rsa-sha1"}, "policy", "rsa-sha1 is not accepted"),
        ({"a": "rsa-md5"}, "neutral", "unknown algorithm"),
        ({"a": "rsa-sha256"}, "permerror", "key of another type"),
        ({"c": "relaxed/loose"}, "neutral", "unknown canonicalization"),
        ({"h": "To:Subject"}, "permerror", "From is not signed"),
        ({"h": "From:" * 600 + "To"}, "neutral", "too many signed fields"),
        ({"q": "dns/txt"}, "pass", ""),
        ({"q": "http"}, "neutral", "unknown query method"),
        ({"t": "1699999999", "x": "1700000001"}, "pass", ""),
        ({"x": "1699999999"}, "fail", "signature expired"),
        ({"t": "1700000009", "x": "1700000008"}, "neutral", None),
        ({"t": "1700000100"}, "pass", ""),
        ({"t": "1700009999"}, "fail", "signed in the future"),
        ({"t": "soon"}, "neutral", "t= is not a number"),
        ({"t": "9" * 77}, "neutral", "t= is not a number"),
        ({"l": str(CANONICAL_LENGTH)}, "pass", ""),
        ({"l": "0"}, "policy", "l= leaves body uncovered"),
        ({"l": str(CANONICAL_LENGTH - 1)}, "policy", "l= leaves body uncovered"),
        ({"l": str(CANONICAL_LENGTH + 1)}, "fail", "l= exceeds the body"),
        ({"l": "-1"}, "neutral", "l= is not a number"),
        ({"s": "a..b"}, "neutral", "d= or s= is not a domain name"),
        ({"d": "x" * 64}, "neutral", "d= or s= is not a domain name"),
        ({"d": "other.example"}, "permerror", "no key for signature"),
        ({"z": "From:x|To:y", "unknown": "tag"}, "pass", ""),
    ],
)
def test_tags(tags: dict[str, str | None], result: str, reason: str | None) -> None:
    found = outcome(resigned(**tags), ED_RECORD)
    assert found[0] == result
    if reason is not None:
        assert found[1] == reason


def encoded(key: Any) -> str:
    raw = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(raw).decode()


ED = ED_RECORD.partition("p=")[2]


@pytest.mark.parametrize(
    ("records", "result", "reason"),
    [
        ([], "permerror", "no key for signature"),
        ([FAILED], "temperror", "key could not be fetched"),
        (["v=spf1 -all"], "permerror", "no key for signature"),
        (["v=spf1 -all", ED_RECORD], "pass", ""),
        ([f"k=ed25519; p={ED}"], "pass", ""),
        ([f"k=ed25519; p={ED[:20]} {ED[20:]};"], "pass", ""),
        ([f"k=ed25519; p={ED}; v=DKIM1"], "permerror", "no key for signature"),
        ([f"v=DKIM2; k=ed25519; p={ED}"], "permerror", "no key for signature"),
        (["v=DKIM1; k=ed25519; p="], "permerror", "key revoked"),
        (["v=DKIM1; k=ed25519"], "permerror", "no key for signature"),
        (["v=DKIM1; k=ed25519; p=AAAA"], "permerror", "unreadable key"),
        (["v=DKIM1; k=ed25519; p=???"], "permerror", "unreadable key"),
        ([f"v=DKIM1; k=dsa; p={ED}"], "permerror", "unknown key type"),
        ([RSA_RECORD], "permerror", "key of another type"),
        ([RSA_RECORD, ED_RECORD], "pass", ""),
        ([keys.generate_key("ed25519")[1]], "fail", "signature did not verify"),
        ([keys.generate_key("ed25519")[1], ED_RECORD], "pass", ""),
        ([f"h=sha1; k=ed25519; p={ED}"], "permerror", "key not for sha256"),
        ([f"h=sha1:sha256; k=ed25519; p={ED}"], "pass", ""),
        ([f"s=chat; k=ed25519; p={ED}"], "permerror", "key not for email"),
        ([f"s=chat:email; k=ed25519; p={ED}"], "pass", ""),
        (["x" * 9000], "permerror", "no key for signature"),
    ],
)
def test_key_records(records: list[Any], result: str, reason: str) -> None:
    assert outcome(resigned(), *records) == (result, reason)


def test_strict_identity_flag() -> None:
    strict = f"t=s; k=ed25519; p={ED}"
    assert outcome(resigned(i="@example.com"), strict)[0] == "pass"
    assert outcome(resigned(i="@a.example.com"), strict) == (
        "permerror",
        "i= must be d= for this key",
    )


def test_testing_keys_do_no_harm() -> None:
    testing = f"t=y:s; k=ed25519; p={ED}"
    (found,) = verify(resigned(), testing)
    assert (found.result, found.testing) == ("pass", True)
    broken = resigned().replace(b"hungry", b"angry!")
    assert outcome(broken, testing) == ("neutral", "body hash did not verify")


@pytest.mark.parametrize("bits", [512, 1023])
def test_short_rsa_keys_are_refused(bits: int) -> None:
    modulus = (1 << bits) - 569  # never factored: the size alone decides
    key = rsa.RSAPublicNumbers(65537, modulus).public_key()
    found = outcome(sign(key=RSA_KEY), f"p={encoded(key)}")
    assert found == ("policy", "key too short")


def test_rsa_of_1024_bits_is_accepted() -> None:
    key = rsa.generate_private_key(65537, 1024)
    assert outcome(sign(key=key), f"p={encoded(key.public_key())}")[0] == "pass"


def test_other_curves_and_huge_exponents_are_refused() -> None:
    curve = encoded(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert outcome(sign(key=RSA_KEY), f"p={curve}") == ("permerror", "unreadable key")
    assert isinstance(RSA_KEY, rsa.RSAPrivateKey)
    modulus = RSA_KEY.public_key().public_numbers().n
    slow = rsa.RSAPublicNumbers((1 << 60) + 1, modulus).public_key()
    found = outcome(sign(key=RSA_KEY), f"p={encoded(slow)}")
    assert found == ("policy", "key too large")


def test_private_keys() -> None:
    assert keys.key_record(ED_KEY) == ED_RECORD
    assert keys.key_record(RSA_KEY) == RSA_RECORD
    with pytest.raises(ValueError, match="kind of key"):
        keys.generate_key("dsa")
    for bad in (b"", b"rubbish", RSA_PEM[:200]):
        with pytest.raises(ValueError, match=r".*"):
            keys.load_private_key(bad)
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(ValueError, match="Ed25519, or RSA"):
        keys.load_private_key(curve)


@pytest.mark.parametrize("field", [b"", b"v=1", b";;;", b"=", b"v=1; v=1", b"\xff\x00"])
def test_rubbish_signatures_are_neutral(field: bytes) -> None:
    assert outcome(b"DKIM-Signature: " + field + b"\r\n" + MESSAGE)[0] == "neutral"


def test_keys_of_several_signatures_are_fetched_together() -> None:
    other = dkim.sign(MESSAGE, "example.net", "t", RSA_KEY, dkim.SIGNED, NOW)
    signed = other + sign()
    resolver = ZoneResolver(
        {
            NAME: [ED_RECORD.encode()],
            ("t._domainkey.example.net", "TXT"): [RSA_RECORD.encode()],
        }
    )
    found = asyncio.run(dkim.verify(resolver, signed, NOW))
    assert [(r.result, r.domain) for r in found] == [
        ("pass", "example.net"),
        ("pass", "example.com"),
    ]
    assert len(resolver.asked) == 2
