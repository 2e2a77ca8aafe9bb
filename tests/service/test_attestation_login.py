"""Login tokens: only the enclave that the quote is of can read them, and Vault and OpenBao can judge them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from confcom.attestation_client import AttestationClient, AttestationRefused
from confcom.formats.arguments import encode_base64url
from confcom.formats.quote import Quote
from confcom.simulator.world import SimulatedWorld
from confcom.tokens import login
from confcom.tokens.policy_jws import wrap
from running_attestation_service import (
    API,
    NOW,
    Answer,
    RunningAttestation,
    enclave_quote,
    make_world,
    quote_over,
    running_attestation,
)

AUDIENCE = "payroll"


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


@pytest.fixture(scope="module")
def service(world: SimulatedWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAttestation]:
    with running_attestation(tmp_path_factory.mktemp("attestation"), world) as running:
        yield running


def nonce_of(service: RunningAttestation) -> str:
    nonce: str = service.ask(f"/nonces?{API}", b"").json["nonce"]
    return nonce


def ask(service: RunningAttestation, world: SimulatedWorld, runtime: bytes, **changes: Any) -> Answer:
    nonce = nonce_of(service)
    asked = {
        "runtimeData": {"data": encode_base64url(runtime), "dataType": "JSON"},
        "nonce": nonce,
        "bindNonce": True,
        "loginFor": AUDIENCE,
    } | changes
    return service.attest(enclave_quote(world, nonce.encode() + runtime), **asked)


def verified(service: RunningAttestation, token: str) -> dict[str, Any]:
    """As Vault does it: by the published keys, RS256, and the time."""
    keys = KeySet.import_key_set(service.ask("/certs").json)
    found = jwt.decode(token, keys, algorithms=["RS256"])
    rules = jwt.JWTClaimsRegistry(now=int(NOW.timestamp()), iss={"value": service.url}, aud={"value": AUDIENCE})
    rules.validate(found.claims)
    return found.claims


def test_the_client_gets_a_token_that_vault_can_judge(service: RunningAttestation, world: SimulatedWorld) -> None:
    token = AttestationClient(service.url).login_token(AUDIENCE, quote_over(world))
    claims = verified(service, token)
    body = Quote.parse(enclave_quote(world)).body
    signer = body.mr_signer.hex()
    assert claims["sub"] == f"sgx:{signer}:{body.isv_prod_id}"
    assert {name: claims[name] for name in ("tee", "mrenclave", "mrsigner", "product-id", "svn", "debug")} == {
        "tee": "sgx",
        "mrenclave": body.mr_enclave.hex(),
        "mrsigner": signer,
        "product-id": body.isv_prod_id,
        "svn": body.isv_svn,
        "debug": False,
    }
    assert (claims["tcb-status"], claims["simulated"]) == ("UpToDate", True)
    assert claims["exp"] - claims["iat"] == 300
    # Vault's claims are flat: nothing that it could not compare.
    assert all(isinstance(value, (str, int, bool)) for value in claims.values())


def test_only_the_enclave_reads_it(service: RunningAttestation, world: SimulatedWorld) -> None:
    private, runtime = login.new_key()
    sealed = ask(service, world, runtime).json["token"]
    assert sealed.count(".") == 4
    with pytest.raises(ValueError, match="not encrypted to this key"):
        login.unseal(sealed, ec.generate_private_key(ec.SECP256R1()))
    assert verified(service, login.unseal(sealed, private))["aud"] == AUDIENCE


def test_a_captured_quote_gives_nobody_else_a_token(service: RunningAttestation, world: SimulatedWorld) -> None:
    _, runtime = login.new_key()
    _, theirs = login.new_key()
    nonce = nonce_of(service)
    quote = enclave_quote(world, nonce.encode() + runtime)
    asked = {"nonce": nonce, "bindNonce": True, "loginFor": AUDIENCE}
    other = service.attest(quote, runtimeData={"data": encode_base64url(theirs), "dataType": "JSON"}, **asked)
    assert "does not vouch" in other.error["message"]
    same = {"data": encode_base64url(runtime), "dataType": "JSON"}
    assert service.attest(quote, runtimeData=same, **asked).status == 200
    assert "used before" in service.attest(quote, runtimeData=same, **asked).error["message"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bindNonce": False}, "takes a bound nonce"),
        ({"loginFor": ""}, "'loginFor' is the audience"),
        ({"loginFor": "a" * 257}, "'loginFor' is the audience"),
        ({"loginFor": "a\nb"}, "'loginFor' is the audience"),
        ({"draftPolicyForAttestation": "e30"}, "draft policy"),
        ({"runtimeData": None}, "one public key on P-256"),
    ],
)
def test_what_a_login_token_takes(
    service: RunningAttestation, world: SimulatedWorld, changes: dict[str, Any], reason: str
) -> None:
    answer = ask(service, world, login.new_key()[1], **changes)
    assert answer.status == 400
    assert reason in answer.error["message"]


def held_keys() -> Iterator[Any]:
    good = json.loads(login.new_key()[1])["keys"][0]
    yield {}
    yield {"keys": None}
    yield {"keys": []}
    yield {"keys": good}
    yield {"keys": [good, good]}
    yield {"keys": ["x"]}
    yield {"keys": [good | {"use": "sig"}]}
    yield {"keys": [good | {"x": good["y"]}]}
    yield {"keys": [good | {"x": 1}]}
    yield {"keys": [good | {"x": "A" * 5000}]}
    yield {"keys": [{name: value for name, value in good.items() if name != "y"}]}
    yield {"keys": [ECKey.generate_key("P-384").as_dict(private=False)]}
    yield {"keys": [ECKey.generate_key("P-256").as_dict(private=True)]}
    yield {"keys": [RSAKey.generate_key(2048).as_dict(private=False)]}


@pytest.mark.parametrize("held", list(held_keys()))
def test_another_key_is_refused(service: RunningAttestation, world: SimulatedWorld, held: Any) -> None:
    answer = ask(service, world, json.dumps(held).encode())
    assert (answer.status, answer.error["code"]) == (400, "InvalidParameter")
    assert "one public key on P-256" in answer.error["message"]


def test_a_policy_adds_claims_and_replaces_none(service: RunningAttestation, world: SimulatedWorld) -> None:
    policy = """version= 1.1; authorizationrules{ => permit(); };
    issuancerules{ c:[type=="x-ms-sgx-svn", value>=0] => issue(type="patched", value="yes");
                   => issue(type="mrsigner", value="forged"); => issue(type="rtmr0", value="forged"); };"""
    service.administer("/policies/SgxEnclave", wrap(policy), method="PUT")
    claims = verified(service, AttestationClient(service.url).login_token(AUDIENCE, quote_over(world)))
    assert claims["patched"] == "yes"
    assert "rtmr0" not in claims
    assert claims["mrsigner"] == Quote.parse(enclave_quote(world)).body.mr_signer.hex()


def test_a_debug_enclave_logs_in_nowhere(service: RunningAttestation, world: SimulatedWorld) -> None:
    with pytest.raises(AttestationRefused, match="debug"):
        AttestationClient(service.url).login_token(AUDIENCE, quote_over(world, debug=True))
