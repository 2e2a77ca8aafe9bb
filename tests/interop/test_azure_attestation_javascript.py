"""Microsoft's client of Azure Attestation for JavaScript (npm @azure/attestation), unmodified, against our service."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from confcom.formats.evidence import OeReportHeader, OeReportType
from confcom.pki.serving_pair import make_serving_pair
from confcom.services.attestation.signing_keys import make_key
from running_attestation_service import NOW, TOKEN, enclave_quote, make_world, running_attestation

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

SOURCE = Path(__file__).parent / "azure_attestation"
HELD = b'{"keys": [{"kty": "EC"}]}'
PERMIT = "version=1.0; authorizationrules{=> permit();}; issuancerules{};"


@pytest.fixture(scope="session")
def node() -> str:
    """node, after npm installed the client as its lock file says."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: Microsoft's JavaScript client cannot be run")
    installed = subprocess.run([npm, "ci"], cwd=SOURCE, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    return node


def test_it_attests_and_administers_policies(node: str, tmp_path: Path) -> None:
    """Over TLS, which the client insists on for its bearer token; in the isolated model, so that everything is signed.

    The client does not know its own clock to be another: times of tokens are not checked.
    """
    world = make_world()
    now = datetime.fromtimestamp(time.time(), UTC)
    authority, pair = make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="test")
    files = {"ca.crt": authority, "tls.crt": pair.certificate, "tls.key": pair.key}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (first, certificate), (_, other) = (_signer(tmp_path / name) for name in ("first", "second"))
    (tmp_path / "signer.pem").write_text(certificate)
    settings: dict[str, Any] = {
        "insecure_http": False,
        "tls_certificate": str(tmp_path / "tls.crt"),
        "tls_key": str(tmp_path / "tls.key"),
        "trust_model": "isolated",
        "policy_signers": (str(tmp_path / "signer.pem"),),
    }
    quote = enclave_quote(world, HELD)
    report = bytes(OeReportHeader(1, OeReportType.REMOTE, len(quote))) + quote
    with running_attestation(tmp_path, world, **settings) as service:
        given = {"url": service.url, "token": TOKEN, "policy": PERMIT}
        given |= {"key": first, "certificate": certificate, "other": other}
        sent = {"quote": quote, "report": report, "held": HELD}
        given |= {name: base64.b64encode(content).decode() for name, content in sent.items()}
        ran = subprocess.run(
            [node, "client.js"],
            cwd=SOURCE,
            env=os.environ | {"NODE_EXTRA_CA_CERTS": str(tmp_path / "ca.crt")},
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout)
        assert found["issuer"] == service.url
        assert found["header"] == ["RS256", "JWT", f"{service.url}/certs"]
    assert found["sgx"]["isDebuggable"] is False
    assert (found["sgx"]["productId"], found["sgx"]["svn"]) == (1, 1)
    assert len(found["sgx"]["mrEnclave"]) == 64
    assert base64.b64decode(found["sgx"]["held"]) == HELD
    assert len(found["sgx"]["sgxCollateral"]["quotehash"]) == 64
    assert len(base64.b64decode(found["sgx"]["policyHash"])) == 32
    assert found["json"] == {"keys": [{"kty": "EC"}]}
    assert found["openEnclave"]["mrEnclave"] == found["sgx"]["mrEnclave"]
    assert found["draft"] == "none"
    assert found["refused"] == [400, "InvalidParameter"]
    assert found["signers"] == 2
    assert found["policy"] == PERMIT
    assert (found["sgx"]["signed"], found["signed"]) == (False, True)
    changes = {name: found[name] for name in ("set", "added", "certificates", "removed", "reset")}
    expected = {"set": "Updated", "added": "IsPresent", "certificates": 2, "removed": "IsAbsent", "reset": "Removed"}
    assert changes == expected


def _signer(folder: Path) -> tuple[str, str]:
    """Key and certificate, in PEM."""
    folder.mkdir()
    pem = make_key(folder, "rsa", NOW, simulated=False).read_text()
    cut = pem.index("-----BEGIN CERT")
    return pem[:cut], pem[cut:]
