"""What independent clients of Azure Attestation send and insist on, replayed (attestation-service.md, section 1.9)."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confcom.formats.evidence import OeReportHeader, OeReportType
from confcom.pki.serving_pair import make_serving_pair
from confcom.services.attestation.signing_keys import make_key
from confcom.simulator.world import SimulatedWorld
from running_attestation_service import NOW, RunningAttestation, enclave_quote, make_world, running_attestation

KEY = (
    ec.derive_private_key(7, ec.SECP384R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


class OverTls:
    """A service over TLS, as these clients insist on, and the authority of its certificate."""

    def __init__(self, service: RunningAttestation, authority: bytes) -> None:
        self.url = service.url
        self._context = ssl.create_default_context(cadata=authority.decode())
        self._context.maximum_version = self._context.minimum_version = ssl.TLSVersion.TLSv1_2

    def get(self, path: str) -> tuple[str, Any]:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: str) -> tuple[str, Any]:
        headers = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(self.url + path, data=body.encode(), headers=headers))

    def _ask(self, request: urllib.request.Request) -> tuple[str, Any]:
        with urllib.request.urlopen(request, context=self._context, timeout=120) as answer:
            assert answer.status == 200
            return answer.headers["Content-Type"], json.loads(answer.read())


@pytest.fixture
def service(tmp_path: Path, world: SimulatedWorld) -> Iterator[OverTls]:
    now = datetime.fromtimestamp(time.time(), UTC)
    authority, pair = make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="test")
    (tmp_path / "tls.crt").write_bytes(pair.certificate)
    (tmp_path / "tls.key").write_bytes(pair.key)
    files = {"tls_certificate": str(tmp_path / "tls.crt"), "tls_key": str(tmp_path / "tls.key")}
    # A rotation in progress: several keys of both kinds are published.
    (tmp_path / "keys").mkdir()
    for days, kind in ((9, "ec"), (8, "rsa"), (2, "ec"), (1, "rsa")):
        make_key(tmp_path / "keys", kind, NOW - timedelta(days=days), simulated=True)
    with running_attestation(tmp_path, world, insecure_http=False, **files) as running:
        yield OverTls(running, authority)


def test_the_verifier_of_gramine(service: OverTls, world: SimulatedWorld) -> None:
    """`ra_tls_verify_maa`: keys before the token, a path that ends in a slash, keys in their order up to the right one.

    What it refuses: another type or spelling of any of these fields, and a key that is not RSA before the one it needs.
    """
    quote = enclave_quote(world, KEY)
    _, keys = service.get("/certs/")
    body = (
        f'{{"quote": "{_base64url(quote)}", "runtimeData":   {{"data": "{_base64url(KEY)}", "dataType": "Binary"}}  }}'
    )
    _, answer = service.post("/attest/SgxEnclave?api-version=2022-08-01", body)
    parts = answer["token"].split(".")
    assert len(parts) == 3
    assert not any(set(part) & set("+/=") for part in parts)
    header, claims = (json.loads(_decoded(part)) for part in parts[:2])
    assert (header["alg"], header["typ"], header["jku"]) == ("RS256", "JWT", f"{service.url}/certs")
    for key in keys["keys"]:
        assert key["kty"] == "RSA", "a key of another kind stands before the one that signed"
        assert isinstance(key["kid"], str)
        certificate = x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0], validate=True))
        if key["kid"] == header["kid"]:
            break
    public = certificate.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    signed = ".".join(parts[:2]).encode()
    public.verify(_decoded(parts[2]), signed, padding.PKCS1v15(), hashes.SHA256())
    assert (claims["x-ms-ver"], claims["x-ms-attestation-type"]) == ("1.0", "sgx")
    assert claims["nbf"] <= NOW.timestamp() <= claims["exp"]
    assert {type(claims[name]) for name in ("exp", "nbf", "x-ms-sgx-product-id", "x-ms-sgx-svn")} == {int}
    assert claims["x-ms-sgx-is-debuggable"] is False
    sizes = {"x-ms-sgx-mrenclave": 32, "x-ms-sgx-mrsigner": 32, "x-ms-sgx-report-data": 64}
    assert {name: len(bytes.fromhex(claims[name])) for name in sizes} == sizes


def test_ego(service: OverTls, world: SimulatedWorld) -> None:
    """EGo sends reports of Open Enclave, compares the issuer with its base URL, and the held data as base64url."""
    quote = enclave_quote(world, KEY)
    report = bytes(OeReportHeader(1, OeReportType.REMOTE, len(quote))) + quote
    body = {"report": _base64url(report), "runtimeData": {"data": _base64url(KEY), "dataType": "Binary"}}
    media_type, keys = service.get("/certs")
    assert media_type == "application/json"
    assert keys["keys"]
    _, answer = service.post("/attest/OpenEnclave?api-version=2020-10-01", json.dumps(body))
    claims = json.loads(_decoded(answer["token"].split(".")[1]))
    assert claims["iss"] == service.url
    assert service.url.startswith("https://")
    assert claims["x-ms-sgx-ehd"] == _base64url(KEY).rstrip("=")


def test_the_demo_of_occlum(service: OverTls, world: SimulatedWorld) -> None:
    """Standard base64 with padding, in both fields."""
    data = base64.b64encode(KEY).decode()
    body = {"quote": base64.b64encode(enclave_quote(world, KEY)).decode(), "runtimeData": {"data": data}}
    assert set(body["quote"]) & set("+/=")
    _, answer = service.post("/attest/SgxEnclave?api-version=2020-10-01", json.dumps(body))
    assert json.loads(_decoded(answer["token"].split(".")[1]))["maa-ehd"] == _base64url(KEY).rstrip("=")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
