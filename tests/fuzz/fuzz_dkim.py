"""Sender authentication: signatures, key, SPF and DMARC records, foreign results."""

from __future__ import annotations

import asyncio

from auth.mail import dkim, dmarc, keys, results, spf
from auth.mail.canonical import body_hash, parse_tags, split_header
from tests.lib.zones import ZoneResolver

RESULTS = {"pass", "fail", "policy", "neutral", "permerror", "temperror"}
SPF_RESULTS = RESULTS - {"policy"} | {"softfail", "none"}
ID = "mx.example.org"
SEEDS = [
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple; d=example.com; s=s;\r\n"
    b" t=1; x=9999999999; l=3; i=@example.com; q=dns/txt; h=From:To:From; bh="
    b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\nFrom: a@example.com\r\n"
    b"To: b\r\n\r\nbody \t\r\n\r\n",
    b"v=DKIM1; k=ed25519; h=sha256:*; s=email; t=y:s; "
    b"p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    b"v=DKIM1; k=rsa; p=MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKZ=",
    b"v=DMARC1; p=reject; sp=none; np=quarantine; adkim=s; t=y; psd=n; rua=mailto:a@b",
    b"v=spf1 a:b.example/24//64 mx ip4:192.0.2.0/28 ip6:2001:db8::/32 ptr "
    b"exists:%{ir}.%{v}.%{l1r-}.x include:c.example redirect=d.example exp=%{o}",
    b'Authentication-Results: (b (\\()) "mx\\.example.org" 1; spf=pass\r\n x=y\r\n\r\n',
]


def fuzz_one(data: bytes) -> None:
    """Every record and field gives a result of the method, and no exception."""
    asyncio.run(_authenticate(data))
    tags = parse_tags(data)
    assert tags is None or b"" not in tags
    header = split_header(data)
    assert b"\r\n".join(header.fields) in data
    for relaxed in (True, False):
        digest, length = body_hash(data, header.body_start, relaxed=relaxed)
        assert len(digest) == 32
        assert length <= len(data) - header.body_start + 2
    kept = results.without_forged(data, ID)
    assert results.without_forged(kept, ID) == kept
    text = data.decode("utf-8", "surrogateescape")
    entry = results.MethodResult("spf", "fail", text, text, (("smtp.helo", text),))
    field = results.build(ID, [entry])
    assert field.count(b"\r") == field.count(b"\n") == field.count(b"\r\n")
    assert b"\r\n\r\n" not in field


async def _authenticate(data: bytes) -> None:
    resolver = ZoneResolver(
        {
            ("s._domainkey.example.com", "TXT"): [data],
            ("_dmarc.example.com", "TXT"): [data],
            ("example.com", "TXT"): [data, b"other"],
            ("example.com", "MX"): [(1, "a.example")],
            ("a.example", "A"): ["192.0.2.1"],
        }
    )
    record = keys.parse_key_record(data)
    assert record is None or (record.key is None) == bool(record.problem)
    for message in (data, SEEDS[0], b"DKIM-Signature:" + data + b"\r\n" + SEEDS[0]):
        found = await dkim.verify(resolver, message, 1e9)
        assert len(found) <= dkim.MAX_SIGNATURES
        assert {result.result for result in found} <= RESULTS
        verdict = await dmarc.evaluate(resolver, ["example.com"], None, found)
        assert verdict.result != "pass"
    text = data.decode("utf-8", "surrogateescape")
    for sender in ("a@example.com", text, f"{text}@example.com"):
        result = await spf.check_host(resolver, "192.0.2.1", sender, text)
        assert result.result in SPF_RESULTS
