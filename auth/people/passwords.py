"""Passwords: argon2id for what people choose, salted BLAKE2 for what we generate.

Argon2id costs memory and time on purpose (RFC 9106), so the caller bounds how many
run at once.  An app password is 100 random bits of ours: nothing to guess, so that
one fast hash suffices, and many of them cost one login nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import secrets
import unicodedata

import argon2
from argon2 import low_level

from mailserverd.core.errors import Kind, MailError

MAX_PASSWORD = 1024  # octets
SALT, DIGEST = 16, 32  # octets of an argon2id hash
APP_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 characters, none alike
APP_GROUPS, APP_GROUP = 5, 4  # 100 bits
APP_PREFIX = "$blake2b$"


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Parameters of argon2id (RFC 9106 section 3.1)."""

    memory: int = 19_456  # KiB
    passes: int = 2
    lanes: int = 1


COST = Cost()


CHEAP = Cost(memory=64, passes=1)
"""For tests: the same code, no security."""


class Passwords:
    """Hashes and verifies; blocking (about 25 ms), to be called in a thread."""

    def __init__(self, cost: Cost = COST) -> None:
        self._hasher = argon2.PasswordHasher(
            time_cost=cost.passes,
            memory_cost=cost.memory,
            parallelism=cost.lanes,
            hash_len=DIGEST,
            salt_len=SALT,
            type=low_level.Type.ID,
        )
        self._dummy = _nobodys(cost)

    def hash(self, password: bytes) -> str:
        """Return the encoded hash of a (prepared) password."""
        return self._hasher.hash(password)

    def verify(self, encoded: str, password: bytes) -> bool:
        """Return whether the password is right; False for a hash we cannot read."""
        try:
            return self._hasher.verify(encoded, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHash):
            return False

    def verify_nobody(self, password: bytes) -> bool:
        """Take as long as ``verify`` for a user that does not exist; False."""
        self.verify(self._dummy, password)
        return False

    def outdated(self, encoded: str) -> bool:
        """Return whether a hash was made with other parameters than today's."""
        try:
            return self._hasher.check_needs_rehash(encoded)
        except argon2.exceptions.InvalidHash:
            return False


def _nobodys(cost: Cost) -> str:
    """Return the encoded hash of no password: verifying takes as long as any other.

    Made up, since a real one would take memory that the process then keeps.
    """
    salt, digest = (
        base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode()
        for size in (SALT, DIGEST)
    )
    parameters = f"m={cost.memory},t={cost.passes},p={cost.lanes}"
    return f"$argon2id$v={low_level.ARGON2_VERSION}${parameters}${salt}${digest}"


def prepare(password: bytes) -> bytes:
    """Return a password as it is hashed: NFC (RFC 8265 section 4.2); INVALID.

    Octets that are not UTF-8 are taken as they are, so that old clients work.
    """
    if not 0 < len(password) <= MAX_PASSWORD or b"\0" in password:
        raise MailError(
            Kind.INVALID, f"a password has 1 to {MAX_PASSWORD} octets and no NUL"
        )
    if password.isascii():
        return password
    try:
        return unicodedata.normalize("NFC", password.decode()).encode()
    except UnicodeDecodeError:
        return password


def generate_app_password() -> str:
    """Return a new app password: ``abcd-efgh-ijkm-npqr-stuv``."""
    return "-".join(
        "".join(secrets.choice(APP_ALPHABET) for _ in range(APP_GROUP))
        for _ in range(APP_GROUPS)
    )


def hash_app_password(password: str) -> str:
    """Return the encoded hash of a generated app password."""
    salt = secrets.token_bytes(16)
    return f"{APP_PREFIX}{salt.hex()}${_app_digest(salt, password.encode())}"


def verify_app_password(encoded: str, password: bytes) -> bool:
    """Return whether the app password is right; spaces and hyphens do not count."""
    if not encoded.startswith(APP_PREFIX):
        return False
    salt, _, digest = encoded.removeprefix(APP_PREFIX).partition("$")
    return hmac.compare_digest(_app_digest(bytes.fromhex(salt), password), digest)


def _app_digest(salt: bytes, password: bytes) -> str:
    plain = password.translate(None, b"- ")
    return hashlib.blake2b(plain, salt=salt, digest_size=32).hexdigest()
