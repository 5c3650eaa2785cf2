"""Certificates: what is renewed is served, whenever the files change."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mailserverd.cli.selfsigned import self_signed
from mailserverd.net.tls import Certificates, Pair

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable


class Renewing(Certificates):
    """Its files change just after they were read."""

    meanwhile: Callable[[], object] | None = None

    def _read(self, pair: Pair) -> Any:
        try:
            return super()._read(pair)
        finally:
            change, self.meanwhile = self.meanwhile, None
            if change is not None:
                change()


def write(base: pathlib.Path, age: float, name: str, content: bytes) -> None:
    (base / name).write_bytes(content)
    os.utime(base / name, (age, age))


def made(base: pathlib.Path) -> Renewing:
    certificate, key = self_signed("mail.example.test")
    write(base, 1, "cert.pem", certificate)
    write(base, 1, "key.pem", key)
    return Renewing([Pair(str(base / "cert.pem"), str(base / "key.pem"))])


def test_a_renewal_is_taken_over_once(tmp_path: pathlib.Path) -> None:
    certificates = made(tmp_path)
    before = certificates.getContext()
    assert not certificates.reload_if_changed()
    certificate, key = self_signed("mail.example.test")
    write(tmp_path, 2, "cert.pem", certificate)
    write(tmp_path, 2, "key.pem", key)
    assert certificates.reload_if_changed()
    assert certificates.getContext() is not before
    assert not certificates.reload_if_changed()


def test_a_renewal_while_the_old_is_read_is_not_missed(tmp_path: pathlib.Path) -> None:
    certificates = made(tmp_path)
    certificate, key = self_signed("mail.example.test")

    def renew() -> None:
        write(tmp_path, 3, "cert.pem", certificate)
        write(tmp_path, 3, "key.pem", key)

    os.utime(tmp_path / "cert.pem", (2, 2))
    certificates.meanwhile = renew
    assert certificates.reload_if_changed()
    assert certificates.reload_if_changed()
    assert not certificates.reload_if_changed()


def test_a_key_that_follows_its_certificate_is_not_missed(
    tmp_path: pathlib.Path,
) -> None:
    """The pair does not fit for a moment; it is looked at again, not given up."""
    certificates = made(tmp_path)
    before = certificates.getContext()
    certificate, key = self_signed("mail.example.test")
    write(tmp_path, 2, "cert.pem", certificate)
    certificates.meanwhile = lambda: write(tmp_path, 2, "key.pem", key)
    assert not certificates.reload_if_changed()
    assert certificates.getContext() is before
    assert certificates.reload_if_changed()
    assert certificates.getContext() is not before


def test_a_file_that_is_gone_leaves_what_is_in_force(tmp_path: pathlib.Path) -> None:
    certificates = made(tmp_path)
    before = certificates.getContext()
    (tmp_path / "key.pem").unlink()
    assert not certificates.reload_if_changed()
    assert not certificates.reload_if_changed()
    assert certificates.getContext() is before
