"""Files of certificates: what is too large is refused by name, and leaves the former certificate in force."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from confcom.errors import ConfigError
from confcom.pki.serving_pair import Authority, make_serving_pair
from confcom.services.runtime import tls as tls_module
from confcom.services.runtime.tls import (
    MAX_PEM_FILE,
    HeldTls,
    IssuedCertificate,
    ReloadingTls,
    TlsFiles,
    read_authorities,
)
from no_descriptors import no_descriptors

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    _, pair = make_serving_pair(["localhost"], now=NOW, lifetime=timedelta(days=30), common_name="test")
    files = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    files.certificate.write_bytes(pair.certificate)
    files.key.write_bytes(pair.key)
    return files


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_a_file_that_is_too_large_is_refused_and_not_used(files: TlsFiles, tmp_path: Path, name: str) -> None:
    tls, file = ReloadingTls(files), tmp_path / name
    content = file.read_bytes()
    in_use = tls._current
    file.write_bytes(content + b"\n" * (MAX_PEM_FILE + 1 - len(content)))
    with pytest.raises(ConfigError, match=f"{name} has more than {MAX_PEM_FILE} bytes"):
        ReloadingTls(files)
    assert not tls.reload()
    assert tls._current is in_use  # what the next handshake takes
    file.write_bytes(content + b"\n" * (MAX_PEM_FILE - len(content)))
    assert tls.reload()


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("content", [b"", b"nothing", b"\xff"])
def test_a_file_without_pem_is_refused_by_name(files: TlsFiles, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{tmp_path / name} .*cannot be used"):
        ReloadingTls(files)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(files: TlsFiles, tmp_path: Path, name: str) -> None:
    tls, file = ReloadingTls(files), tmp_path / name
    content, in_use = file.read_bytes(), tls._current
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigError, match=f"{name}: it is a pipe"):
        ReloadingTls(files)
    assert not tls.reload()
    assert tls._current is in_use
    file.unlink()
    file.write_bytes(content)
    assert tls.reload()


async def test_a_pipe_in_the_place_of_a_ca_is_no_ca(files: TlsFiles, tmp_path: Path) -> None:
    certificate = IssuedCertificate(tmp_path, ("localhost",), common_name="test", clock=lambda: NOW)
    (tmp_path / "tls.key").unlink()
    os.mkfifo(tmp_path / "tls.key")
    certificate.look()
    assert certificate.not_ready.startswith("no usable CA in")


async def test_a_clock_that_is_set_back_gets_another_certificate(tmp_path: Path) -> None:
    ca = Authority.make("test", now=NOW, lifetime=timedelta(days=365))
    (tmp_path / "tls.crt").write_bytes(ca.certificate)
    (tmp_path / "tls.key").write_bytes(ca.key)
    clock = [NOW + timedelta(days=20)]
    certificate = IssuedCertificate(tmp_path, ("localhost",), common_name="test", clock=lambda: clock[-1])
    for now in (clock[-1], NOW, NOW + timedelta(days=1)):
        clock.append(now)
        certificate.look()
        assert certificate.served is not None
        assert certificate.served.made <= now < certificate.served.expires
    assert certificate.changes == 2


def test_files_that_change_while_there_is_no_descriptor_are_used_later(files: TlsFiles) -> None:
    """They were tried once: the certificate before them stayed in force until it expired."""
    tls = ReloadingTls(files)
    in_use = tls._current
    files.key.write_bytes(files.key.read_bytes() + b"\n")
    for _ in range(2):
        with no_descriptors():
            assert not tls.reload()
        assert tls._current is in_use
    assert tls.reload()
    assert not tls.reload()


@pytest.mark.parametrize("left", [0, 1, 2])
async def test_a_ca_that_changes_while_there_is_no_descriptor_is_used_later(tmp_path: Path, left: int) -> None:
    """It was said to be unusable, so the server was not ready; and one descriptor too few for the pair ended it."""

    def write_ca() -> None:
        ca = Authority.make("test", now=NOW, lifetime=timedelta(days=365))
        (tmp_path / "tls.crt").write_bytes(ca.certificate)
        (tmp_path / "tls.key").write_bytes(ca.key)

    certificate = IssuedCertificate(tmp_path, ("localhost",), common_name="test", clock=lambda: NOW)
    write_ca()
    with no_descriptors():
        certificate.look()
    assert certificate.not_ready == "no file can be opened: Too many open files"
    certificate.look()
    served = certificate.served
    write_ca()
    with no_descriptors(but=left):
        certificate.look()
    assert certificate.not_ready == ""
    assert certificate.served is served
    certificate.look()
    assert certificate.changes == 2


def test_authorities_are_read_whole_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    file.write_bytes(b"x" * MAX_PEM_FILE)
    assert len(read_authorities(file, "the authority")) == MAX_PEM_FILE
    file.write_bytes(b"x" * (MAX_PEM_FILE + 1))
    with pytest.raises(ConfigError, match=f"ca.crt has more than {MAX_PEM_FILE} bytes"):
        read_authorities(file, "the authority")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_with_a_certificate_is_verified_in_each_connection(files: TlsFiles, version: ssl.TLSVersion) -> None:
    former, authority = (Authority.make(name, now=NOW, lifetime=timedelta(days=1)).certificate for name in ("a", "b"))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode, client.maximum_version = False, ssl.CERT_NONE, version
    tls = HeldTls(*files.read())
    for _ in range(2):
        tls.require_client(former, optional=True)
        kept = _shake(client, tls, None).session
        assert not _shake(client, tls, kept).session_reused
        tls.require_client(authority, optional=True)
        assert not _shake(client, tls, kept).session_reused


def test_a_certificate_and_an_authority_that_are_replaced_at_once_both_count(
    files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.make("a", now=NOW, lifetime=timedelta(days=1)).certificate
    _, renewed = make_serving_pair(["localhost"], now=NOW, lifetime=timedelta(days=30), common_name="renewed")
    tls, load = HeldTls(*files.read()), tls_module._load
    begun, go_on = threading.Event(), threading.Event()

    def slow(certificate: bytes, key: bytes, place: str) -> ssl.SSLContext:
        if certificate != renewed.certificate:
            begun.set()
            assert go_on.wait(120)
        return load(certificate, key, place)

    monkeypatch.setattr(tls_module, "_load", slow)
    asking = threading.Thread(target=tls.require_client, args=(authority,))
    renewing = threading.Thread(target=tls.use, args=(renewed.certificate, renewed.key))
    asking.start()
    assert begun.wait(120)
    renewing.start()
    renewing.join(0.5)
    go_on.set()
    asking.join()
    renewing.join()
    assert (tls._pair, tls.client_ca) == ((renewed.certificate, renewed.key), authority)


def _shake(client: ssl.SSLContext, tls: HeldTls, session: ssl.SSLSession | None) -> ssl.SSLObject:
    """The client's end of a connection that was closed."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there, session=session)
    answering = tls.context.wrap_bio(there, back, server_side=True)
    for end in (asking, answering) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    answering.write(b".")
    assert asking.read() == b"."
    for end in (answering, asking):  # an end that is not closed forgets its session
        with contextlib.suppress(ssl.SSLWantReadError):
            end.unwrap()
    return asking
