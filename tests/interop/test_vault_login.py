"""An enclave logs in to Vault's own server and JWT method, and reads its secret.

OpenBao, whose JWT method has the same origin, cannot be built from the module proxy. Vault's core is: it takes many
minutes the first time (`./dev interop -k vault`).
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from confcom.attestation_client import AttestationClient, AttestationRefused
from confcom.formats.quote import Quote
from confcom.pki.serving_pair import make_serving_pair
from confcom.secret_client import read_secret
from confcom.simulator.world import SimulatedWorld
from running_attestation_service import RunningAttestation, enclave_quote, make_world, quote_over, running_attestation

pytestmark = [pytest.mark.interop, pytest.mark.timeout(3600)]

SOURCE = Path(__file__).parent / "vault"
PASSWORD = {"password": "correct horse"}
POLICY = 'path "secret/data/payroll" { capabilities = ["read"] }'


@dataclass(frozen=True)
class Vault:
    url: str
    ca: Path
    root: str

    def write(self, path: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(f"{self.url}/v1/{path}", json.dumps(body).encode(), method="POST")
        request.add_header("X-Vault-Token", self.root)
        urllib.request.urlopen(request, context=ssl.create_default_context(cafile=self.ca), timeout=60).close()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: Vault cannot be built")
    folder = tmp_path_factory.mktemp("vault")
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    for command in (["mod", "tidy"], ["build", "-o", "vault", "."]):
        done = subprocess.run([go, *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "vault"


@pytest.fixture
def vault(program: Path, tmp_path: Path) -> Iterator[Vault]:
    day = timedelta(days=1)
    authority, pair = make_serving_pair(
        ("127.0.0.1",), now=datetime.fromtimestamp(time.time(), UTC), lifetime=day, common_name="vault"
    )
    files = [tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key")]
    for file, content in zip(files, (authority, pair.certificate, pair.key), strict=True):
        file.write_bytes(content)
    with subprocess.Popen([program, *files[1:]], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, root = process.stdout.readline().split()
        yield Vault(f"https://127.0.0.1:{port}", files[0], root)
        process.kill()


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world(now=datetime.fromtimestamp(time.time(), UTC))


@pytest.fixture
def service(tmp_path: Path, world: SimulatedWorld) -> Iterator[RunningAttestation]:
    # Vault compares the times of tokens with the machine's clock.
    with running_attestation(tmp_path, world, now=datetime.fromtimestamp(time.time(), UTC)) as running:
        yield running


def test_an_enclave_reads_its_secret(vault: Vault, service: RunningAttestation, world: SimulatedWorld) -> None:
    body = Quote.parse(enclave_quote(world)).body
    vault.write("sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
    vault.write("sys/policies/acl/payroll", {"policy": POLICY})
    vault.write("secret/data/payroll", {"data": PASSWORD})
    vault.write("sys/auth/jwt", {"type": "jwt"})
    vault.write("auth/jwt/config", {"jwks_url": f"{service.url}/certs", "bound_issuer": service.url})

    def role(**claims: Any) -> None:
        vault.write("auth/jwt/role/payroll", {
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["payroll"], "policies": ["payroll"],
            "bound_claims": claims, "claim_mappings": {"mrenclave": "mrenclave", "tcb-status": "tcb_status"},
        })  # fmt: skip

    def read(path: str = "secret/data/payroll", **changes: Any) -> dict[str, Any]:
        return read_secret(
            path, server=vault.url, role="payroll", attestation=AttestationClient(service.url),
            quote=quote_over(world), ca=vault.ca, **changes,
        )  # fmt: skip

    right: dict[str, Any] = {"mrsigner": body.mr_signer.hex(), "tcb-status": "UpToDate", "debug": False}
    right |= {"product-id": body.isv_prod_id, "svn": body.isv_svn}
    role(**right)
    assert read()["data"] == PASSWORD
    for wrong in ({"mrsigner": "00" * 32}, {"debug": True}, {"tcb-status": "OutOfDate"}, {"product-id": 7}):
        role(**(right | wrong))
        with pytest.raises(AttestationRefused, match="claim"):
            read()
    role(**right)
    with pytest.raises(AttestationRefused, match="403"):
        read("secret/data/others")
    vault.write("auth/jwt/role/other", {
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["another"], "policies": ["payroll"],
    })  # fmt: skip
    token = AttestationClient(service.url).login_token("payroll", quote_over(world))
    with pytest.raises(urllib.error.HTTPError, match="400"):
        vault.write("auth/jwt/login", {"role": "other", "jwt": token})
