"""nginx, stunnel and Envoy, unmodified, serve with certificates of the signer, and go on while these are renewed.

`./dev interop -k attested_servers`; the programs come from Debian and from the interop packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509

from attested_servers import SERVERS, command, environment, filled, programs
from certificate_requests_api import CertificateRequestsApi
from confcom.atls.issuer import load_pair
from confcom.pki.serving_pair import make_serving_pair
from confcom.platforms.pod_certificate import PodCertificate
from running_attestation_service import free_port
from running_certificate_signer import SignerStage, now, policy_of, world

pytestmark = [pytest.mark.interop]
HANG = 120
RENEWALS = 2
ENCLAVE = 'enclave = "web"\nsigner = "vendor"\nisv_prod_id = 3\nisv_svn = 2\n'
ASK = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"


@pytest.fixture
def stage() -> Iterator[SignerStage]:
    with TemporaryDirectory(prefix="servers-") as name, CertificateRequestsApi() as api:
        found = SignerStage(Path(name), api)
        (found.policies / "shop.toml").write_text(policy_of())
        yield found


@contextlib.asynccontextmanager
async def kept(stage: SignerStage) -> AsyncIterator[Path]:
    """The folder of `confcom certificate --keep`, as the sidecar of a pod has it; renewed every 10 seconds."""
    machine, declared, tls = stage.folder / "machine.json", stage.folder / "enclave.toml", stage.folder / "tls"
    world().write_first(machine)
    declared.write_text(ENCLAVE)
    tls.mkdir()
    words = ["--machine", machine, "--enclave", declared, "-o", tls, "--lifetime", "2m", "--keep"]
    words += ["--kubeconfig", stage.requester()]
    sidecar = await asyncio.create_subprocess_exec(sys.executable, "-m", "confcom", "certificate", *map(str, words))
    try:
        async with asyncio.timeout(HANG):
            while not (tls / "tls.crt").exists():
                assert sidecar.returncode is None
                await asyncio.sleep(0.1)
        yield tls
        assert sidecar.returncode is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            sidecar.terminate()
        await sidecar.wait()


@contextlib.contextmanager
def serving(name: str, folder: Path, tls: Path) -> Iterator[int]:
    """The server on a port of this machine."""
    found = programs()
    if name not in found:
        pytest.skip(f"{name} is not installed: ./dev interop installs it")
    run, port = folder / name, free_port()
    run.mkdir()
    values = {"run": str(run), "tls": str(tls), "host": "127.0.0.1", "port": str(port), "address": f"127.0.0.1:{port}"}
    values |= {"namespace": "shop", "client": "client", "backend": f"127.0.0.1:{free_port()}"}
    values |= {program: str(path) for program, path in found.items()}
    for file, text in SERVERS[name].files.items():
        (run / file).write_text(filled(text, values))
    with contextlib.ExitStack() as stack:
        given: int | socket.socket = subprocess.DEVNULL
        if SERVERS[name].inherits:
            given = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        process = stack.enter_context(
            subprocess.Popen(command(name, values), env=environment(), start_new_session=True, stdin=given)
        )
        try:
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def context(authorities: bytes, mine: PodCertificate | None) -> ssl.SSLContext:
    found = ssl.create_default_context(cadata=authorities.decode())
    if mine is not None:
        load_pair(found, mine.certificate, mine.key)
    return found


async def answer(port: int, using: ssl.SSLContext, name: str = "web.shop.svc") -> tuple[int, bytes]:
    """The serial number of the server's certificate, and what it answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=using, server_hostname=name)
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.write(ASK)
        return x509.load_der_x509_certificate(shown).serial_number, await reader.read()
    finally:
        writer.close()


async def refused(port: int, using: ssl.SSLContext, name: str = "web.shop.svc") -> bool:
    try:
        return b"hello" not in (await answer(port, using, name))[1]
    except OSError:
        return True


@pytest.mark.parametrize("name", SERVERS)
async def test_an_unmodified_server_speaks_mutual_tls_and_misses_no_connection_while_it_renews(
    stage: SignerStage, name: str
) -> None:
    async with stage.running(), kept(stage) as tls:
        mine = await stage.certificate(stage.requester("client", pod="client-1"))
        other = await stage.certificate(stage.requester("other", pod="other-1"))
        allowed = context(stage.published(), mine)
        with serving(name, stage.folder, tls) as port:
            async with asyncio.timeout(HANG):
                while await refused(port, allowed):
                    await asyncio.sleep(0.1)
            # Who has no certificate of this CA, or expects another name, gets nothing.
            assert await refused(port, context(stage.published(), None))
            foreign = PodCertificate(*self_signed())
            assert await refused(port, context(stage.published(), foreign))
            with pytest.raises(ssl.SSLCertVerificationError):
                await answer(port, allowed, "other.shop.svc")
            with pytest.raises(ssl.SSLCertVerificationError):
                await answer(port, context(foreign.certificate, mine))
            assert await refused(port, context(stage.published(), other)) is SERVERS[name].knows_accounts
            serials, asked = set[int](), 0
            async with asyncio.timeout(HANG):
                while len(serials) <= RENEWALS:
                    serial, said = await answer(port, allowed)
                    assert b"hello" in said
                    serials.add(serial)
                    asked += 1
    assert asked > len(serials)


def self_signed() -> tuple[bytes, bytes, bytes]:
    """Of no CA that counts: the certificate, its CA and its key."""
    authority, pair = make_serving_pair(("client.shop.svc",), now=now(), lifetime=timedelta(days=1), common_name="x")
    return pair.certificate, authority, pair.key
