"""Certificates: several, chosen by SNI, re-read without dropping a connection.

Two TLS stacks serve them: Twisted's (pyOpenSSL; IMAP and HTTP, 28 KiB per idle
connection with released buffers) and ``ssl`` (under aiosmtpd).  Both reload together.
"""

from __future__ import annotations

import dataclasses
import pathlib
import ssl
from typing import TYPE_CHECKING, Any

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLContextFactory
from zope.interface import implementer

from mailserverd.core.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

log = get_logger("tls")
MODE_RELEASE_BUFFERS = 0x10  # OpenSSL: idle connections give their buffers back
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!eNULL"


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """One certificate with its key, as files."""

    certificate: str
    key: str


class CertificateError(Exception):
    """A certificate or key cannot be used; the text names the file and the reason."""


@implementer(IOpenSSLContextFactory)
class Certificates:
    """The certificates in force, for both TLS stacks."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = tuple(pairs)
        self._stamps: tuple[float, ...] = ()
        self._twisted: dict[str, SSL.Context] = {}
        self._stdlib: dict[str, ssl.SSLContext] = {}
        self._default = ""
        self.load()

    def load(self) -> None:
        """Read all files; CertificateError leaves what was in force untouched."""
        twisted: dict[str, SSL.Context] = {}
        stdlib: dict[str, ssl.SSLContext] = {}
        default = ""
        stamps = self._modified()  # before reading: a change under it is seen later
        for pair in self._pairs:
            names, for_twisted, for_stdlib = self._read(pair)
            default = default or names[0]
            for name in names:
                twisted.setdefault(name, for_twisted)
                stdlib.setdefault(name, for_stdlib)
        self._stamps = stamps
        self._twisted, self._stdlib, self._default = twisted, stdlib, default

    def replace(self, pairs: Sequence[Pair]) -> None:
        """Read other files from now on; CertificateError leaves all as it was."""
        before, self._pairs = self._pairs, tuple(pairs)
        try:
            self.load()
        except CertificateError:
            self._pairs = before
            raise

    def reload_if_changed(self) -> bool:
        """Re-read when a file changed; a faulty new file is logged, the old stays."""
        stamps = self._modified()
        if stamps == self._stamps:
            return False
        try:
            self.load()
        except CertificateError as error:
            log.error("certificate-reload-failed", error=str(error))  # noqa: TRY400
            self._stamps = stamps
            return False
        log.info("certificates-loaded", names=sorted(self._twisted))
        return True

    def getContext(self) -> SSL.Context:
        """Return the context for a new Twisted connection."""
        return self._twisted[self._default]

    @property
    def stdlib(self) -> ssl.SSLContext:
        """The context for a new connection of the ``ssl`` module."""
        return self._stdlib[self._default]

    def _modified(self) -> tuple[float, ...]:
        return tuple(_mtime(n) for p in self._pairs for n in (p.certificate, p.key))

    def _read(self, pair: Pair) -> tuple[list[str], SSL.Context, ssl.SSLContext]:
        try:
            data = pathlib.Path(pair.certificate).read_bytes()
            names = _names(x509.load_pem_x509_certificate(data))
            return names, self._for_twisted(pair), self._for_stdlib(pair)
        except (OSError, ValueError, ssl.SSLError, SSL.Error) as error:
            raise CertificateError(
                f"{pair.certificate} with {pair.key}: {str(error) or 'do not fit'}"
            ) from error

    def _for_twisted(self, pair: Pair) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(CIPHERS)
        context.set_mode(MODE_RELEASE_BUFFERS)
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.use_certificate_chain_file(pair.certificate)
        context.use_privatekey_file(pair.key)
        context.check_privatekey()
        context.set_tlsext_servername_callback(self._choose_twisted)
        return context

    def _choose_twisted(self, connection: SSL.Connection) -> None:
        name = (connection.get_servername() or b"").decode("ascii", "replace")
        connection.set_context(_match(self._twisted, name) or self.getContext())

    def _for_stdlib(self, pair: Pair) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS.decode())
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.load_cert_chain(pair.certificate, pair.key)
        context.sni_callback = self._choose_stdlib
        return context

    def _choose_stdlib(self, connection: Any, name: str | None, _: Any) -> None:
        # Called without SNI too: a listener made before a reload serves what is new.
        connection.context = _match(self._stdlib, name or "") or self.stdlib


def _mtime(name: str) -> float:
    try:
        return pathlib.Path(name).stat().st_mtime
    except OSError:
        return 0.0


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    return [name.lower() for name in names] or ["*"]


def _match(contexts: dict[str, Any], name: str) -> Any:
    wanted = name.lower()
    return contexts.get(wanted) or contexts.get("*." + wanted.partition(".")[2])
