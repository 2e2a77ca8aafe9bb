"""EGo's own code: its attested TLS against our verifier, and our tokens of attestation against its verifier.

Its quotes come from the quote helper of a simulated platform. EGo's runtime, which makes reports in its enclaves, is in
no registry: a socket stands in for it. `eclient` needs a library of that runtime too, so it is not run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from attested_certificates import oe_report
from attested_tls import HANG, client, declared, world
from confcom.atls import NotAttested, attested_peer
from confcom.collateral.bundle import save_bundle
from confcom.pki.serving_pair import make_serving_pair
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.attestation import attestation_service
from running_attestation_service import running_attestation
from running_helper import running_helper

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

SOURCE = Path(__file__).parent / "ego"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: EGo's packages cannot be built")
    folder = tmp_path_factory.mktemp("ego")
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    for command in (["mod", "tidy"], ["build", "-o", "ego", "."]):
        done = subprocess.run([go, *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "ego"


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Path]:
    """The socket that makes reports of the enclave "app"."""
    with running_helper(world().platform, tmp_path / "aesm.socket"):
        platform = AesmPlatform(tmp_path / "aesm.socket", simulated=True)
        quotes = EnclaveQuoteSource(platform, world().machine.launch(declared()))

        class Report(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(oe_report(quotes.quote(self.request.recv(64)).quote))

        with socketserver.ThreadingUnixStreamServer(str(tmp_path / "reports"), Report) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield tmp_path / "reports"
            server.shutdown()


RULES = {"ego": "SHA-256 of the key", "open-enclave": "SHA-256 of the key in PEM"}


@pytest.mark.parametrize(("kind", "rule"), RULES.items())
def test_its_servers_are_attested(program: Path, reports: Path, tmp_path: Path, kind: str, rule: str) -> None:
    with subprocess.Popen(
        [program, "serve", kind], env=os.environ | {"REPORTS": str(reports)}, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            with client().wrap_socket(socket.create_connection(("127.0.0.1", port), HANG)) as connection:
                assert attested_peer(connection).binding == rule
                assert connection.recv(100) == b"hello from EGo\n"
            with pytest.raises(NotAttested, match="mr-enclave"), socket.create_connection(("127.0.0.1", port)) as other:
                client("other").wrap_socket(other)
            outcome = verify_command(port, tmp_path)
        finally:
            server.kill()
    assert outcome["certificate"]["format"] == "open-enclave-report"
    assert outcome["certificate"]["binding"] == rule
    assert outcome["certificate"]["not_before"] == "0001-01-01T00:00:00Z"  # EGo sets none


def verify_command(port: int, folder: Path) -> dict[str, Any]:
    """`confcom verify --connect`; what it prints."""
    save_bundle(world().publish(), folder / "collateral")
    (folder / "root.pem").write_bytes(world().trust_roots.roots[0].pem)
    words = ["confcom", "verify", "--connect", f"127.0.0.1:{port}", "--mr-enclave", declared().mr_enclave.hex()]
    words += ["--collateral", "collateral", "--trust-root", "root.pem", "--json"]
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_its_verifier_takes_our_tokens(
    program: Path, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compares times with the machine's clock, wants TLS, and drops the path of a URL.

    Services of real hardware have none; those of simulated machines cannot be asked by EGo.
    """
    monkeypatch.setattr(attestation_service, "SIMULATED_PREFIX", "")
    now = datetime.fromtimestamp(time.time(), UTC)
    authority, pair = make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="test")
    for name, content in {"ca.crt": authority, "tls.crt": pair.certificate, "tls.key": pair.key}.items():
        (tmp_path / name).write_bytes(content)
    tls = {"tls_certificate": str(tmp_path / "tls.crt"), "tls_key": str(tmp_path / "tls.key"), "insecure_http": False}
    environment = os.environ | {"REPORTS": str(reports), "SSL_CERT_FILE": str(tmp_path / "ca.crt")}
    with running_attestation(tmp_path, world(), now=now, **tls) as service:
        words = [program, "token", "held by the enclave", service.url]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    enclave = declared()
    assert b64decode(report["Data"]) == b"held by the enclave"
    assert b64decode(report["UniqueID"]) == enclave.mr_enclave
    assert b64decode(report["SignerID"]) == enclave.mr_signer
    assert b64decode(report["ProductID"]) == (1).to_bytes(16, "little")
    assert (report["SecurityVersion"], report["Debug"]) == (1, False)
