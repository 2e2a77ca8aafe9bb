"""What cert-manager's own functions sign of requests that the certificate signer approves for it (Go builds them)."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from certificate_requests_api import CertificateRequestsApi
from confcom.pki.serving_pair import Authority
from running_certificate_signer import SignerStage, now

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]
SOURCE = Path(__file__).parent / "cert_manager"
ISSUER = "clusterissuers.cert-manager.io/simulated"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: cert-manager cannot be built")
    folder = tmp_path_factory.mktemp("cert-manager")
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    for command in (["mod", "tidy"], ["build", "-o", "sign", "."]):
        done = subprocess.run([go, *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "sign"


@pytest.fixture
def stage() -> Iterator[SignerStage]:
    with TemporaryDirectory(prefix="signer-") as name, CertificateRequestsApi() as api:
        yield SignerStage(Path(name), api)


async def test_cert_manager_signs_what_ours_would(program: Path, stage: SignerStage) -> None:
    authority = Authority.make("issuer", now=now(), lifetime=timedelta(days=30))
    for name, content in (("ca.crt", authority.certificate), ("ca.key", authority.key)):
        (stage.folder / name).write_bytes(content)
    async with stage.running(approve_for=(ISSUER,)):
        ours = x509.load_pem_x509_certificate((await stage.certificate(stage.requester())).certificate)
        asked = asyncio.create_task(stage.certificate(stage.requester(pod="web-2"), signer=ISSUER))
        async with asyncio.timeout(60):
            while not (found := [one for one in stage.api.requests.values() if approved(one)]):
                await asyncio.sleep(0.02)
        document = json.dumps(found[0]).encode()
        command = [program, stage.folder / "ca.crt", stage.folder / "ca.key"]
        done = subprocess.run(command, input=document, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        found[0]["status"]["certificate"] = b64encode(done.stdout).decode()
        theirs = x509.load_pem_x509_certificates((await asked).certificate)[0]
    assert not theirs.subject
    mine, other = (one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for one in (ours, theirs))
    assert mine == other
    usages = theirs.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {*usages} == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not theirs.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert theirs.not_valid_after_utc - theirs.not_valid_before_utc <= timedelta(hours=24, minutes=10)
    theirs.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    # The evidence went to the signer alone.
    assert {one.oid.dotted_string for one in theirs.extensions}.isdisjoint({"2.23.133.5.4.9"})


def approved(document: dict[str, object]) -> bool:
    status, spec = document["status"], document["spec"]
    assert isinstance(status, dict)
    assert isinstance(spec, dict)
    return spec["signerName"] == ISSUER and any(one["type"] == "Approved" for one in status.get("conditions", ()))
