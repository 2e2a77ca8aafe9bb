"""Secrets for Gramine's clients: a client of the standard library speaks the protocol as Gramine's sources write it.

`tests/interop/test_gramine_client.py` has Gramine's own library.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attested_certificates import DICE, GRAMINE, Certificate, key, ra_tls, sha256, spki, standard_claims
from attested_certificates import with_null_parameters as as_mbedtls_writes
from attested_tls import HANG, accepts, declared, issuer, quotes, world
from confcom import RememberedCollateral, SourceOptions
from confcom.appraisal.policy import safe_defaults
from confcom.appraisal.quote import QuoteVerifier
from confcom.atls import secret_provisioning, serve_secret
from confcom.atls import server as atls_server
from confcom.atls.issuer import IssuedCertificate, utc_now
from confcom.collateral.bundle import save_bundle
from confcom.errors import ConfcomError, ConfigError
from confcom.pki.serving_pair import make_serving_pair
from documented import ROOT

PASSWORD = b"correct horse\0"
ASKED = b"SECRET_PROVISION_RA_TLS_REQUEST_V1\0"
GIVEN = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0" + bytes([0, 0, 0, 14]) + PASSWORD


@cache
def pair() -> tuple[bytes, bytes, bytes]:
    """Authority, certificate and key of the server."""
    lifetime = timedelta(days=1)
    authority, made = make_serving_pair(("127.0.0.1",), now=utc_now(), lifetime=lifetime, common_name="secrets")
    return authority, made.certificate, made.key


@contextlib.asynccontextmanager
async def serving(**changed: Any) -> AsyncIterator[int]:
    """A server of the secret, and its port."""
    verifier = QuoteVerifier(world().trust_roots)
    with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
        task = asyncio.create_task(serve_secret(listener, verifier=verifier, **parameters(**changed)))
        try:
            yield listener.getsockname()[1]
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def client(shown: IssuedCertificate | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=pair()[0].decode())
    if shown is not None:
        shown.load_into(context)
    return context


async def ask(port: int, shown: IssuedCertificate | None, sent: bytes = ASKED) -> bytes:
    """Everything that the server sends until it ends the connection."""
    received = b""
    async with asyncio.timeout(HANG):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client(shown))
            writer.write(sent)
            while more := await reader.read(1000):
                received += more
        except OSError:
            return received
        writer.close()
        return received


def shown(name: str = "app", *, quoted: ec.EllipticCurvePrivateKey | None = None, days: int = 1) -> IssuedCertificate:
    """A certificate as Gramine 1.8 makes them; its quotes are for the key `quoted`, if one is given."""
    source, private, begin = quotes(name), key(), utc_now() - timedelta(days=3)
    claims, digest = standard_claims(quoted or private), sha256(spki(quoted or private))
    evidence = [source.quote(one.ljust(64, b"\0")).quote for one in (digest, sha256(claims))]
    extensions = (GRAMINE, evidence[0]), (DICE, ra_tls(evidence[1], claims))
    end = utc_now() + timedelta(days=days)
    der = as_mbedtls_writes(Certificate(extensions, key=private, not_before=begin, not_after=end).build())
    return replace(issuer(name).current(), der=der, key=private)


def before_1_8() -> IssuedCertificate:
    return issuer("app", gramine_legacy=True).current()


@pytest.mark.parametrize("make", [shown, before_1_8])
async def test_an_accepted_client_gets_the_secret(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "confcom.atls")
    async with serving() as port:
        assert await ask(port, make()) == GIVEN
    [line] = [one for one in caplog.messages if one.startswith("secret given")]
    assert line.startswith("secret given to 127.0.0.1: <VerifiedPeer ")
    assert f"enclave {declared().mr_enclave.hex()[:16]}" in line
    assert PASSWORD.decode()[:-1] not in caplog.text


def plain() -> IssuedCertificate:
    begin, end = utc_now() - timedelta(days=1), utc_now() + timedelta(days=1)
    return replace(shown(), der=Certificate((), key=key(), not_before=begin, not_after=end).build())


REFUSED = {
    "another enclave": (lambda: shown("other"), "(policy-refused)"),
    "quotes that were copied": (lambda: shown(quoted=key(2)), "(binding-mismatch)"),
    "an expired certificate": (lambda: shown(days=-1), "(certificate-invalid): the certificate is expired"),
    "a certificate without evidence": (plain, "carries no evidence"),
    "no certificate": (lambda: None, "peer did not return a certificate"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_others_get_nothing_and_the_log_says_why(case: str, caplog: pytest.LogCaptureFixture) -> None:
    make, why = REFUSED[case]
    async with serving() as port:
        assert await ask(port, make()) == b""
        assert await ask(port, shown()) == GIVEN
    assert [one for one in caplog.messages if one.startswith("no secret for 127.0.0.1") and why in one]


async def test_other_requests_get_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        for sent in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", ASKED.replace(b"V1", b"V2")):
            assert await ask(port, shown(), sent) == b""
    assert sum("(malformed-input)" in one for one in caplog.messages) == 2


async def test_a_request_may_come_in_pieces() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client(shown()))
        for byte in ASKED:
            writer.write(bytes([byte]))
            await writer.drain()
        assert await reader.readexactly(len(GIVEN)) == GIVEN
        writer.close()


async def test_sessions_are_not_resumed() -> None:
    def twice(port: int) -> tuple[bool, ssl.SSLSession | None]:
        context, session, reused = client(shown()), None, False
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", port), HANG) as stream,
                context.wrap_socket(stream, server_hostname="127.0.0.1", session=session) as tls,
            ):
                tls.sendall(ASKED)
                assert tls.recv(1)
                session, reused = tls.session, tls.session_reused
        return reused, session

    async with serving() as port:
        reused, session = await asyncio.to_thread(twice, port)
    assert not reused
    # Tickets of TLS 1.3 end the clients of Gramine 1.8 (mbedTLS 3.6.0).
    assert session is None or not session.has_ticket


async def test_silent_clients_keep_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atls_server, "PATIENCE", 0.2)
    with contextlib.ExitStack() as staying:
        async with serving() as port:
            for number in range(150):
                one = staying.enter_context(socket.create_connection(("127.0.0.1", port), HANG))
                one.sendall((b"", b"\x16", b"\x16\x03\x01\x40\x00\x01")[number % 3])
            assert await ask(port, shown()) == GIVEN
        monkeypatch.setattr(secret_provisioning, "DEADLINE", 0.2)
        async with serving() as port:
            silent = staying.enter_context(socket.create_connection(("127.0.0.1", port), HANG))
            assert await asyncio.to_thread(silent.recv, 1) == b""


async def test_collateral_is_asked_for_when_the_quote_is_for_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = SourceOptions(roots=world().trust_roots, at=utc_now())
    async with serving(collateral=RememberedCollateral(str(tmp_path / "missing"), options)) as port:
        assert await ask(port, shown(quoted=key(2))) == b""
        assert "(binding-mismatch)" in caplog.text
        assert "missing" not in caplog.text
        assert await ask(port, shown()) == b""
        assert "missing" in caplog.text
    save_bundle(world().publish(), tmp_path / "bundle")
    async with serving(collateral=RememberedCollateral(str(tmp_path / "bundle"), options)) as port:
        assert await ask(port, shown()) == GIVEN


async def test_a_source_that_hangs_takes_one_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_provisioning, "DEADLINE", 2.0)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    save_bundle(world().publish(), tmp_path)
    part = tmp_path / "qe_identity.json"
    part.unlink()
    os.mkfifo(part)  # there is no end to reading it
    source = RememberedCollateral(str(tmp_path), SourceOptions(roots=world().trust_roots, at=utc_now()))
    try:
        async with serving(collateral=source) as port:
            for _ in range(3):
                assert await ask(port, shown()) == b""
            assert sum("not done within" in one for one in caplog.messages) == 3
            assert await ask(port, shown(quoted=key(2))) == b""
            assert "(binding-mismatch)" in caplog.messages[-1]
    finally:
        os.close(os.open(part, os.O_RDWR))  # ends what reads


def parameters(**changed: Any) -> dict[str, Any]:
    _, certificate, private = pair()
    given = {"secret": PASSWORD, "policy": accepts(), "collateral": world().publish()}
    return given | {"certificate": certificate, "key": private} | changed


def other_key() -> bytes:
    _, made = make_serving_pair(("127.0.0.1",), now=utc_now(), lifetime=timedelta(days=1), common_name="other")
    return made.key


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"policy": safe_defaults(accept_simulated=True)}, "does not say who is expected"),
        ({"secret": b""}, "secret: expected 1 to 2147483647 bytes, found 0"),
        ({"certificate": b"none"}, "certificate and key cannot be used: Unable to load PEM"),
        ({"certificate": b""}, "certificate and key cannot be used: Unable to load PEM"),
        ({"key": b"none"}, "certificate and key cannot be used: "),
        ({"key": other_key()}, "certificate and key cannot be used: key values mismatch"),
    ],
)
async def test_parameters_are_checked(changed: dict[str, Any], why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConfcomError, match=why):
        await serve_secret(listener, **parameters(**changed))


async def test_without_pyopenssl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConfigError) as caught:
        await serve_secret(listener, **parameters())
    assert "confcom[gramine]" in caught.value.advice()


async def test_the_program_of_the_page_refuses_what_intel_did_not_make(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "release-a-secret.md").read_text()
    [program] = re.findall(r"^```python\n(# serve_secret.py\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    for name, content in zip(("tls.crt", "tls.key", "secret"), (*pair()[1:], PASSWORD), strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "policy.toml").write_text(f'mr_enclave = ["{declared().mr_enclave.hex()}"]')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "4433" in program
    made = shown()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program.replace("4433", str(port))), cwd=tmp_path, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(2 * HANG):
            asked = b""
            while not asked.startswith(b"WARNING"):
                assert await ask(port, made) == b""
                with contextlib.suppress(TimeoutError):
                    asked = await asyncio.wait_for(process.stderr.readline(), 0.2)
    finally:
        process.kill()
        await process.wait()
    assert b"no secret for 127.0.0.1 (root-untrusted)" in asked
