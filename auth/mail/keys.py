"""DKIM keys: the published record (RFC 6376 section 3.6.1) and the private half."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from auth.mail.canonical import parse_tags

MIN_RSA_BITS = 1024  # RFC 8301 section 3.2
MAX_RSA_BITS = 4096  # what verifiers must take; more is a way to burn our time
MAX_EXPONENT_BITS = 33
MAX_RECORD = 4096  # octets
NEW_RSA_BITS = 2048
KINDS = ("rsa", "ed25519")

PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_PADDING = padding.PKCS1v15()
_SHA256 = hashes.SHA256()


@dataclasses.dataclass(frozen=True, slots=True)
class KeyRecord:
    """A published key.

    ``problem`` is "" or why it cannot be used ("revoked", "key too short" ...);
    then ``key`` is None.  ``unacceptable`` marks a problem of policy, not of syntax.
    """

    kind: str = ""
    key: PublicKey | None = None
    testing: bool = False  # t=y
    same_domain: bool = False  # t=s: i= must not be a subdomain of d=
    bits: int = 0
    problem: str = ""
    unacceptable: bool = False

    def verifies(self, signature: bytes, data: bytes, digest: bytes) -> bool:
        """Verify over ``data`` (RSA) or its SHA-256 ``digest`` (RFC 8463 section 3)."""
        try:
            if isinstance(self.key, rsa.RSAPublicKey):
                self.key.verify(signature, data, _PADDING, _SHA256)
            elif self.key is not None:
                self.key.verify(signature, digest)
        except InvalidSignature:
            return False
        return self.key is not None


def parse_key_record(text: bytes) -> KeyRecord | None:
    """Parse a TXT record; None when it is no DKIM key record at all."""
    return _parse_record(text) if len(text) <= MAX_RECORD else None


@functools.lru_cache(512)
def _parse_record(text: bytes) -> KeyRecord | None:
    tags = parse_tags(text)
    if tags is None or b"p" not in tags:
        return None
    if b"v" in tags and (tags[b"v"] != b"DKIM1" or next(iter(tags)) != b"v"):
        return None
    flags = _listed(tags.get(b"t", b""))
    kind = tags.get(b"k", b"rsa").decode("ascii", "replace")
    record = KeyRecord(kind, testing=b"y" in flags, same_domain=b"s" in flags)
    problem = _misfit(kind, tags)
    if problem:
        return dataclasses.replace(record, problem=problem)
    try:
        key = _load(kind, b"".join(tags[b"p"].split()))
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        return dataclasses.replace(record, problem="unreadable key")
    bits = key.key_size if isinstance(key, rsa.RSAPublicKey) else 256
    problem = _unacceptable(key)
    return dataclasses.replace(
        record,
        key=None if problem else key,
        bits=bits,
        problem=problem,
        unacceptable=bool(problem),
    )


def _listed(value: bytes) -> set[bytes]:
    return {item.strip() for item in value.split(b":")}


def _misfit(kind: str, tags: dict[bytes, bytes]) -> str:
    if not tags[b"p"]:
        return "key revoked"
    if kind not in KINDS:
        return "unknown key type"
    if b"h" in tags and b"sha256" not in _listed(tags[b"h"]):
        return "key not for sha256"
    if not _listed(tags.get(b"s", b"*")) & {b"*", b"email"}:
        return "key not for email"
    return ""


def _load(kind: str, encoded: bytes) -> PublicKey:
    raw = base64.b64decode(encoded, validate=True)
    if kind == "ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(raw)
    key = serialization.load_der_public_key(raw)
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("not an RSA key")  # noqa: TRY004 - what the others raise
    return key


def _unacceptable(key: PublicKey) -> str:
    if not isinstance(key, rsa.RSAPublicKey):
        return ""
    if key.key_size < MIN_RSA_BITS:
        return "key too short"
    exponent = key.public_numbers().e.bit_length()
    large = key.key_size > MAX_RSA_BITS or exponent > MAX_EXPONENT_BITS
    return "key too large" if large else ""


def generate_key(kind: str) -> tuple[bytes, str]:
    """Make a key "rsa" or "ed25519": (private PEM, TXT value to publish).

    RSA takes a fraction of a second: offload it.  ValueError for another kind.
    """
    key: PrivateKey
    if kind == "rsa":
        key = rsa.generate_private_key(65537, NEW_RSA_BITS)
    elif kind == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    else:
        raise ValueError(f"not a kind of key: {kind}")
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem, key_record(key)


def key_record(key: PrivateKey) -> str:
    """Return the TXT value that publishes the public half of a key."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        raw = public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        kind = "rsa"
    else:
        raw, kind = public.public_bytes_raw(), "ed25519"
    return f"v=DKIM1; k={kind}; p={base64.b64encode(raw).decode()}"


def load_private_key(pem: bytes) -> PrivateKey:
    """Load a PEM private key; ValueError when it cannot sign for DKIM.

    Checking an RSA key costs milliseconds: keep what this returns.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("not an unencrypted private key") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < MIN_RSA_BITS:
        raise ValueError("a DKIM key is Ed25519, or RSA of at least 1024 bits")
    return key


def kind_of(key: PrivateKey) -> str:
    """Return "rsa" or "ed25519"."""
    return "rsa" if isinstance(key, rsa.RSAPrivateKey) else "ed25519"


def sign_data(key: PrivateKey, data: bytes, digest: bytes) -> bytes:
    """Sign ``data`` (RSA) or its SHA-256 ``digest`` (Ed25519, RFC 8463 section 3)."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, _PADDING, _SHA256)
    return key.sign(digest)
