"""Microsoft's client of Azure Attestation (PyPI azure-security-attestation), unmodified, against our service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confcom.services.attestation.signing_keys import make_key
from confcom.simulator.world import SimulatedWorld
from running_attestation_service import NOW, TOKEN, RunningAttestation, enclave_quote, make_world, running_attestation

attestation = pytest.importorskip("azure.security.attestation")
exceptions = pytest.importorskip("azure.core.exceptions")
policies = pytest.importorskip("azure.core.pipeline.policies")

HELD = b'{"keys": [{"kty": "EC"}]}'
PERMIT = "version=1.0; authorizationrules{=> permit();}; issuancerules{};"


class NoCredential:
    """The client wants one, and sends it over TLS only."""

    def get_token(self, *scopes: str, **more: Any) -> None:
        raise AssertionError("no token is asked for")


class Bearer(policies.SansIOHTTPPolicy):  # type: ignore[misc,name-defined]
    def on_request(self, request: Any) -> None:
        request.http_request.headers["Authorization"] = f"Bearer {TOKEN}"


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


@pytest.fixture
def service(tmp_path: Path, world: SimulatedWorld) -> Iterator[RunningAttestation]:
    with running_attestation(tmp_path, world) as running:
        yield running


def test_it_attests_and_validates_the_token(service: RunningAttestation, world: SimulatedWorld) -> None:
    open_ = policies.SansIOHTTPPolicy()
    client = attestation.AttestationClient(service.url, NoCredential(), authentication_policy=open_)
    quote = enclave_quote(world, HELD)
    # The service's clock is the tests'; the client's is the machine's.
    checks = {
        "validate_issuer": True,
        "issuer": service.url,
        "validate_expiration": False,
        "validate_not_before": False,
    }
    result, token = client.attest_sgx_enclave(quote, runtime_data=HELD, **checks)
    assert token.algorithm == "RS256"
    assert result.enclave_held_data == HELD
    assert result.is_debuggable is False
    result, _ = client.attest_sgx_enclave(quote, runtime_json=HELD, **checks)
    assert result.runtime_claims == {"keys": [{"kty": "EC"}]}
    _, token = client.attest_sgx_enclave(quote, draft_policy=PERMIT, **checks)
    assert token.algorithm == "none"
    assert client.get_open_id_metadata()["issuer"] == service.url
    assert len(client.get_signing_certificates()) == 2


def test_it_administers_policies(service: RunningAttestation) -> None:
    kind = attestation.AttestationType.SGX_ENCLAVE
    client = attestation.AttestationAdministrationClient(
        service.url,
        NoCredential(),
        authentication_policy=Bearer(),
        validate_expiration=False,
        validate_not_before=False,
    )
    result, _ = client.set_policy(kind, PERMIT)
    assert result.policy_resolution == "Updated"
    assert client.get_policy(kind)[0] == PERMIT
    assert client.reset_policy(kind)[0].policy_resolution == "Removed"
    assert client.get_policy_management_certificates()[0] == []


def test_it_signs_policies_and_manages_their_signers(tmp_path: Path, world: SimulatedWorld) -> None:
    """The client spells the algorithm RSA256, and puts the certificate into `jwk`."""
    first, second = (make_key(folder, "rsa", NOW, simulated=False).read_text() for folder in _folders(tmp_path))
    signer = tmp_path / "signer.pem"
    signer.write_text(first[first.index("-----BEGIN CERT") :])
    kind = attestation.AttestationType.SGX_ENCLAVE
    with running_attestation(tmp_path, world, trust_model="isolated", policy_signers=(str(signer),)) as service:
        client = attestation.AttestationAdministrationClient(
            service.url,
            NoCredential(),
            authentication_policy=Bearer(),
            validate_expiration=False,
            validate_not_before=False,
        )
        keys = {"signing_key": _key(first), "signing_certificate": _certificate(first)}
        result, _ = client.set_policy(kind, PERMIT, **keys)
        assert result.policy_resolution == "Updated"
        with pytest.raises(exceptions.HttpResponseError, match="not known here"):
            client.set_policy(kind, PERMIT, signing_key=_key(second), signing_certificate=_certificate(second))
        added, _ = client.add_policy_management_certificate(_certificate(second), **keys)
        assert added.certificate_resolution == "IsPresent"
        assert len(client.get_policy_management_certificates()[0]) == 2
        removed, _ = client.remove_policy_management_certificate(_certificate(second), **keys)
        assert removed.certificate_resolution == "IsAbsent"
        assert client.reset_policy(kind, **keys)[0].policy_resolution == "Removed"


def _folders(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    return folders


def _key(pem: str) -> str:
    return pem[: pem.index("-----BEGIN CERT")]


def _certificate(pem: str) -> str:
    return pem[pem.index("-----BEGIN CERT") :]
