"""Gramine's own client of secret provisioning, its quotes from the quote helper of a simulated platform.

No registry has Gramine. `GRAMINE_LIBRARY` names its library where it is not Debian's place of Gramine's packages.
`/dev/attestation` exists in Gramine's enclaves alone: gramine/attestation.c stands in for it. What makes the
certificate and speaks TLS and the protocol is Gramine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from attested_tls import HANG, accepts, declared, world
from confcom.appraisal.quote import QuoteVerifier
from confcom.atls import serve_secret
from confcom.atls.issuer import utc_now
from confcom.pki.serving_pair import make_serving_pair
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.quoting import EnclaveQuoteSource
from running_helper import running_helper

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

LIBRARY = Path(os.environ.get("GRAMINE_LIBRARY", "/usr/lib/x86_64-linux-gnu/libsecret_prov_attest.so"))
PRINT = "import os; print(os.environ['SECRET_PROVISION_SECRET_STRING'])"


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The libraries to preload."""
    compiler = shutil.which("cc")
    if compiler is None or not LIBRARY.exists():
        missing = "a C compiler" if compiler is None else f"{LIBRARY}: build or install Gramine, set GRAMINE_LIBRARY"
        pytest.skip(f"there is no {missing}")
    built = tmp_path_factory.mktemp("gramine") / "attestation.so"
    source = Path(__file__).parent / "gramine" / "attestation.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return f"{built}:{LIBRARY}"


@pytest.fixture
def attestation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The folder that stands for /dev/attestation in the enclave that the test names."""
    (tmp_path / "keys").mkdir()
    with running_helper(world().platform, tmp_path / "aesm.socket"):
        platform = AesmPlatform(tmp_path / "aesm.socket", simulated=True)
        quotes = EnclaveQuoteSource(platform, world().machine.launch(declared(request.param)))

        class Quote(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(quotes.quote(self.request.recv(64)).quote)

        with socketserver.ThreadingUnixStreamServer(str(tmp_path / "socket"), Quote) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield tmp_path
            server.shutdown()


@contextlib.asynccontextmanager
async def serving(secret: bytes, folder: Path) -> AsyncIterator[dict[str, str]]:
    """A server of the secret, and what clients need to find it in their environment."""
    day = timedelta(days=1)
    authority, pair = make_serving_pair(("localhost",), now=utc_now(), lifetime=day, common_name="secrets")
    (folder / "ca.crt").write_bytes(authority)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(
            serve_secret(
                listener,
                secret,
                accepts(),
                world().publish(),
                certificate=pair.certificate,
                key=pair.key,
                verifier=QuoteVerifier(world().trust_roots),
            )
        )
        yield {
            "SECRET_PROVISION_SERVERS": f"nobody:80;localhost:{listener.getsockname()[1]}",
            "SECRET_PROVISION_CA_CHAIN_PATH": str(folder / "ca.crt"),
        }
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def run(program: str, preloaded: str, folder: Path, **environment: str) -> tuple[int | None, str, str]:
    """Exit code and outputs of a Python program that receives the secret before it begins."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env=os.environ
        | {"LD_PRELOAD": preloaded, "ATTESTATION": str(folder), "SECRET_PROVISION_CONSTRUCTOR": "1"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), HANG)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("attestation", ["app"], indirect=True)
async def test_a_program_finds_the_secret_in_its_environment(
    preloaded: str, attestation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "confcom.atls")
    async with serving(b"correct horse\0", attestation) as environment:
        code, out, err = await run(PRINT, preloaded, attestation, **environment)
    assert (code, out) == (0, "correct horse\n"), err
    assert f"enclave {declared().mr_enclave.hex()[:16]}" in caplog.text


@pytest.mark.parametrize("attestation", ["app"], indirect=True)
async def test_a_key_for_encrypted_files(preloaded: str, attestation: Path) -> None:
    async with serving(bytes(range(16)), attestation) as environment:
        code, _, err = await run("", preloaded, attestation, SECRET_PROVISION_SET_KEY="default", **environment)
    assert code == 0, err
    assert (attestation / "default").read_bytes() == bytes(range(16))


@pytest.mark.parametrize("attestation", ["other"], indirect=True)
async def test_another_enclave_ends_before_its_program(
    preloaded: str, attestation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(b"correct horse\0", attestation) as environment:
        code, out, err = await run(PRINT, preloaded, attestation, **environment)
    assert code == 1
    assert "correct horse" not in out
    assert "Secret provisioning failed" in err
    assert "(policy-refused)" in caplog.text
