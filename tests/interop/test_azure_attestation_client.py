"""Microsoft's client of Azure Attestation (PyPI azure-security-attestation), unmodified, against our service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confcom.simulator.world import SimulatedWorld
from running_attestation_service import TOKEN, RunningAttestation, enclave_quote, make_world, running_attestation

attestation = pytest.importorskip("azure.security.attestation")
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
