"""The attestation service: tokens by the API of Azure Attestation, from evidence of the simulated platform."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certificate_api import CertificateApi
from confcom.cli.root import run
from confcom.errors import ConfigError
from confcom.formats.arguments import encode_base64url
from confcom.formats.evidence import OeReportHeader, OeReportType
from confcom.formats.sgx import ReportBody
from confcom.pki.chain import TrustRoots, simulated_world
from confcom.services.attestation.appraiser import NONCE_BOUND
from confcom.services.attestation.attestation_store import AttestationStore
from confcom.services.attestation.signing_keys import make_key
from confcom.simulator.enclaves import td_report
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.azure import DEFAULT_POLICY, AttestationType, SentPolicy, policy_hash, sgx_claims
from confcom.tokens.jws import ReadJws, SigningKey
from confcom.tokens.policy_jws import wrap
from confcom.tokens.policy_language import MAX_TEXT, is_reserved
from running_attestation_service import (
    API,
    NOW,
    TOKEN,
    Answer,
    RunningAttestation,
    claims_of,
    enclave_quote,
    make_world,
    running_attestation,
)

HELD = b'{"keys":[{"kty":"EC"}]}'
PERMIT = "version=1.0; authorizationrules{=> permit();}; issuancerules{};"


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


@pytest.fixture
def service(tmp_path: Path, world: SimulatedWorld) -> Iterator[RunningAttestation]:
    with running_attestation(tmp_path, world) as running:
        yield running


def _data(data: bytes, kind: str = "Binary") -> dict[str, str]:
    return {"data": encode_base64url(data), "dataType": kind}


def _verified(service: RunningAttestation, token: str, algorithm: str = "RS256") -> dict[str, Any]:
    """The claims, after the signature held under a published key."""
    jws = ReadJws.parse(token)
    key = next(key for key in service.ask("/certs").json["keys"] if key["kid"] == jws.header["kid"])
    certificate = x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0]))
    assert jws.header["alg"] == algorithm
    assert jws.verify(certificate.public_key(), algorithm)
    return claims_of(token)


def test_a_quote_becomes_a_token(service: RunningAttestation, world: SimulatedWorld) -> None:
    answer = service.attest(enclave_quote(world, HELD), runtimeData=_data(HELD), nonce="n")
    claims = _verified(service, answer.json["token"])
    assert claims["iss"] == service.url
    assert claims["exp"] - claims["iat"] == 8 * 3600
    assert claims["nonce"] == "n"
    assert claims["x-ms-sgx-ehd"] == claims["maa-ehd"] == encode_base64url(HELD)
    assert claims["sgx-mrenclave"] == claims["x-ms-sgx-mrenclave"]
    assert claims["is-debuggable"] is False
    # What Azure's tokens do not say.
    assert claims["confcom-tcb-status"] == "UpToDate"
    assert claims["confcom-fmspc"] == "000053494d00"
    assert claims["confcom-simulated"] is True
    header = ReadJws.parse(answer.json["token"]).header
    assert header["jku"] == f"{service.url}/certs"
    assert header["typ"] == "JWT"


def test_json_that_the_enclave_holds_becomes_a_claim(service: RunningAttestation, world: SimulatedWorld) -> None:
    answer = service.attest(enclave_quote(world, HELD), runtimeData=_data(HELD, "JSON"))
    assert answer.claims["x-ms-runtime"] == json.loads(HELD)
    assert "x-ms-sgx-ehd" not in answer.claims


def test_open_enclave_reports_and_tds(service: RunningAttestation, world: SimulatedWorld) -> None:
    quote = enclave_quote(world)
    report = bytes(OeReportHeader(1, OeReportType.REMOTE, len(quote))) + quote
    assert service.attest(report, "OpenEnclave").claims["x-ms-attestation-type"] == "sgx"
    td = world.platform.quote_td(td_report("td", bytes(64)))
    claims = service.attest(td, "TdxVm").claims
    assert claims["x-ms-attestation-type"] == "tdxvm"
    assert claims["attester_tcb_status"] == "UpToDate"
    assert claims["dbgstat"] == "disabled"
    assert claims["tdx_td_attributes_septve_disable"] is True
    assert len(claims["tdx_mrtd"]) == 96
    for evidence, kind in ((quote, "OpenEnclave"), (report, "SgxEnclave"), (td, "SgxEnclave"), (quote, "TdxVm")):
        assert service.attest(evidence, kind).error["code"] == "InvalidParameter"


def test_debug_enclaves_and_tds_are_refused_by_default(service: RunningAttestation, world: SimulatedWorld) -> None:
    answer = service.attest(enclave_quote(world, debug=True))
    assert answer.status == 400
    assert "debug" in answer.error["message"]
    td = replace(td_report("td", bytes(64)), td_attributes=1)
    assert service.attest(world.platform.quote_td(td), "TdxVm").status == 400


def test_a_quote_vouches_for_what_comes_with_it(service: RunningAttestation, world: SimulatedWorld) -> None:
    for field in ("runtimeData", "initTimeData"):
        answer = service.attest(enclave_quote(world, HELD), **{field: _data(HELD + b"x")})
        assert answer.status == 400
        assert f"does not vouch for '{field}'" in answer.error["message"]


def test_every_reason_is_in_the_error(service: RunningAttestation, world: SimulatedWorld) -> None:
    quote = bytearray(enclave_quote(world))
    quote[200] ^= 1
    answer = service.attest(bytes(quote))
    assert answer.status == 400
    assert answer.headers["x-ms-error-code"] == answer.error["code"] == "InvalidParameter"
    inner = answer.error["innererror"]
    assert inner["code"] == "signature-invalid"
    assert inner["checks"][-1]["ok"] is False


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not the JSON"),
        (b"[]", "not the JSON"),
        (b"[" * 100_000, "not the JSON"),
        ({"quote": 5}, "not the JSON"),
        ({"report": "AAAA"}, "lacks 'quote'"),
        ({"quote": "A\u00e9"}, "'quote' holds characters that base64 does not have, first 'é'"),
        ({"quote": "AAAA\nAAAA"}, "first '\\n'"),
        ({"quote": "AA==="}, "first '='"),
        ({"quote": "03000200" * 4}, "'quote' is written in hexadecimal digits"),
        ({"quote": "AAAAA"}, "'quote' is not base64"),
        ({"quote": "AAAA", "runtimeData": {"data": "AA", "dataType": "XML"}}, "'runtimeData.dataType'"),
        ({"quote": "AAAA", "runtimeData": {"data": "AA", "dataType": "JSON"}}, "'runtimeData.data' is declared JSON"),
        ({"quote": "AAAA", "nonce": "n" * 2000}, "'nonce' has"),
        ({"quote": "BAACAA"}, "Quote.header"),
    ],
)
def test_a_request_that_cannot_be_read(service: RunningAttestation, body: Any, message: str) -> None:
    answer = service.ask(f"/attest/SgxEnclave?{API}", body)
    assert answer.status == 400
    assert message in answer.error["message"]


@pytest.mark.parametrize(
    "more",
    ['"nonce":"","nonce":""', '"x":0,"x":0', '"quote":"AAAA"', ""],
    ids=["named", "unknown", "evidence", "in held data"],
)
def test_a_member_that_stands_twice_is_refused(service: RunningAttestation, world: SimulatedWorld, more: str) -> None:
    held = HELD if more else b'{"role":"user","role":"admin"}'
    body = {"runtimeData": _data(held, "JSON"), "quote": encode_base64url(enclave_quote(world, held))}
    sent = json.dumps(body, separators=(",", ":"))
    if more:
        sent = f"{{{more},{sent[1:]}"
    answer = service.ask(f"/attest/SgxEnclave?{API}", sent.encode())
    assert answer.status == 400
    assert "stands twice" in answer.error["message"]


def test_paths_and_versions(service: RunningAttestation) -> None:
    assert service.ask("//attest/SgxEnclave", {}).status == 404
    assert "/simulated" in service.ask("//certs").error["message"]
    assert "api-version" in service.ask("/attest/SgxEnclave", {}).error["message"]
    assert "2025-06-01" in service.ask("/attest/SgxEnclave?api-version=2019-01-01", {}).error["message"]
    for twice in (f"{API}&{API}", f"{API}&api-version=2019-01-01", f"{API}&a=1&a=1"):
        assert "twice" in service.ask(f"/attest/SgxEnclave?{twice}", {}).error["message"]
    assert service.ask(f"/attest/SgxEnclave?{API}", b"x" * (2 << 20)).status == 413
    assert service.ask("/certs/").json == service.ask("/certs").json
    assert "SgxEnclave, OpenEnclave, TdxVm" in service.ask(f"/attest/SevSnpVm?{API}", {}).error["message"]
    document = service.ask("/.well-known/openid-configuration").json
    assert document["issuer"] == service.url
    assert document["jwks_uri"] == f"{service.url}/certs"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/attest/SgxEnclave", 405, "MethodNotAllowed"),
        ("POST", "/certs", 405, "MethodNotAllowed"),
        ("DELETE", "/policies/SgxEnclave", 405, "MethodNotAllowed"),
        ("PATCH", "/nothing", 404, "NotFound"),
        ("POST", "/attest/Tpm", 404, "NotFound"),
        ("POST", "/attest/SgxEnclave/", 404, "NotFound"),
        ("GET", "/policies/SgxEnclave/", 404, "NotFound"),
        ("GET", "//readyz/", 404, "NotFound"),
        ("GET", "//nothing", 404, "NotFound"),
    ],
)
def test_every_refusal_has_the_error_body_of_the_api(
    service: RunningAttestation, method: str, path: str, status: int, code: str
) -> None:
    answer = service.ask(f"{path}?{API}", method=method)
    assert (answer.status, answer.error["code"], answer.headers["x-ms-error-code"]) == (status, code, code)
    assert len(answer.headers["x-ms-request-id"]) == 36
    assert answer.headers["content-type"] == "application/json"


def test_evidence_is_judged_under_several_sets(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, update="standard, early,999") as service:
        claims = service.attest(enclave_quote(world)).claims
        standard, early, missing = claims["confcom-tcb-sets"]
        assert (standard["update"], early["update"]) == ("standard", "early")
        assert standard["verdict"] == early["verdict"] == "accepted"
        assert standard["tcb_evaluation_data_number"] == claims["confcom-tcb-evaluation-data-number"]
        # A set that is not to be had decides nothing.
        assert (missing["update"], missing["verdict"]) == ("999", "undecided")
        assert missing["error"]["code"] == "collateral-not-found"
        body = {"quote": encode_base64url(enclave_quote(world))}
        ear = service.ask(f"/attest/SgxEnclave?{API}", body, Accept="application/eat+jwt").body.decode()
        module = claims_of(ear)["submods"]["sgx"]
        assert len(module["ear.veraison.annotated-evidence"]["confcom-tcb-sets"]) == 3


def test_the_policy_names_the_set_that_decides(service: RunningAttestation, world: SimulatedWorld) -> None:
    number = world.authority.tcb_info().tcb_evaluation_data_number
    found = service.ask("/tcbbaselines/SgxEnclave?api-version=2025-06-01").json["tcbBaselines"]
    assert [(each["tcbIdentifier"], each["isSelectedTcb"]) for each in found] == [
        ("azuredefault", True),
        ("early", False),
        (str(number), False),
    ]
    assert found[2]["tcbEvaluationDataNumber"] == number
    assert found[2]["tcbReleaseDate"] == "2025-11-21T09:30:00Z"
    for identifier, status in (("azuredefault", 200), (str(number), 200), ("early", 200), ("9", 503), ("x", 400)):
        rule = f'=> issueproperty(type="x-ms-sgx-tcbidentifier", value="{identifier}");'
        text = f"version=1.1;configurationrules{{{rule}}};authorizationrules{{=> permit();}};"
        assert service.attest(enclave_quote(world), draftPolicyForAttestation=text).status == status
        if status == 200:
            assert service.administer("/policies/SgxEnclave", text, method="PUT").status == 200
            baselines = service.ask(f"/tcbbaselines/SgxEnclave?{API}").json["tcbBaselines"]
            assert [each["tcbIdentifier"] for each in baselines if each["isSelectedTcb"]] == [identifier]
    assert service.ask(f"/tcbbaselines/SevSnpVm?{API}").error["code"] == "InvalidParameter"


def test_the_list_of_sets_costs_its_source_little(tmp_path: Path, world: SimulatedWorld) -> None:
    """Anybody may ask for it: the source is asked once in a while, and addresses have their share."""
    folder = tmp_path / "bundle"
    world.export_collateral(folder)
    with running_attestation(tmp_path, world, collateral=str(folder), attest_per_minute=4) as service:
        path = f"/tcbbaselines/SgxEnclave?{API}"
        first = service.ask(path)
        assert (first.status, first.error["code"]) == (503, "CollateralUnavailable")
        shutil.rmtree(folder)
        assert service.ask(path).error["message"] == first.error["message"]
        # Three windows of a minute cannot pass meanwhile, so of so many calls one is too many.
        assert 429 in {service.ask(path).status for _ in range(14)}


def test_tokens_name_the_signer_of_their_policy(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world) as service:
        assert "x-ms-policy-signer" not in service.attest(enclave_quote(world)).claims
        for kind, name in (("rsa", "RSA"), ("ec", "EC")):
            key = SigningKey.from_pem(make_key(tmp_path, kind, NOW, simulated=True).read_bytes(), "")
            assert service.administer("/policies/SgxEnclave", _signed(key), method="PUT").status == 200
            signer = service.attest(enclave_quote(world)).claims["x-ms-policy-signer"]
            assert signer == {"kty": name, "x5c": _x5c(key)}


def test_both_dialects_of_base64(service: RunningAttestation, world: SimulatedWorld) -> None:
    quote = enclave_quote(world)
    for text in (base64.b64encode(quote).decode(), base64.urlsafe_b64encode(quote).decode()):
        assert service.ask(f"/attest/SgxEnclave?{API}", {"quote": text}).status == 200


def test_a_draft_policy_gives_an_unsigned_token(service: RunningAttestation, world: SimulatedWorld) -> None:
    quote = enclave_quote(world)
    for draft in (PERMIT, wrap(PERMIT)):
        token = service.attest(quote, draftPolicyForAttestation=draft).json["token"]
        assert ReadJws.parse(token).header["alg"] == "none"
        assert token.endswith(".")
        assert claims_of(token)["x-ms-policy-hash"] == policy_hash(PERMIT)
    refused = service.attest(quote, draftPolicyForAttestation="version=1.0;authorizationrules{=> deny();};")
    assert refused.error["code"] == "PolicyEvaluationError"
    assert refused.error["innererror"]["trace"][0]["applied"] is True
    broken = service.attest(quote, draftPolicyForAttestation="version=1.0;authorizationrules{=> permit() };")
    assert broken.error["code"] == "PolicyParsingError"
    inner = broken.error["innererror"]
    assert {"symbol", "line", "column", "rule"} <= set(inner)
    assert service.attest(quote).claims["is-debuggable"] is False


def test_a_draft_that_nothing_can_read_is_refused_before_it_costs_anything(
    service: RunningAttestation, world: SimulatedWorld
) -> None:
    quote = enclave_quote(world)
    long = "version=1.0;" + "x" * MAX_TEXT
    for draft in (long, wrap(long)):
        refused = service.attest(quote, draftPolicyForAttestation=draft)
        assert (refused.status, refused.error["code"]) == (400, "PolicyParsingError")
        assert f"{len(long)} characters, at most {MAX_TEXT}" in refused.error["message"]
    zero = PERMIT.replace("=>", '[type=="\0"] =>')
    for draft in (zero, wrap(zero)):
        refused = service.attest(quote, draftPolicyForAttestation=draft)
        assert (refused.status, refused.error["code"]) == (400, "PolicyParsingError")
        assert "a zero character" in refused.error["message"]
    p256, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030102")
    key = make_key(Path(service.config.keys), "ec", NOW, simulated=True)
    der = SigningKey.from_pem(key.read_bytes(), "").certificate.public_bytes(Encoding.DER).replace(p256, unknown)
    header = json.dumps({"alg": "ES256", "x5c": [base64.b64encode(der).decode()]}).encode()
    signed = f"{encode_base64url(header)}.{wrap(PERMIT).split('.')[1]}.AAAA"
    refused = service.attest(quote, draftPolicyForAttestation=signed)
    assert (refused.status, refused.error["code"]) == (400, "InvalidOperation")
    assert "no usable certificate" in refused.error["message"]
    assert service.administer("/audit").body == b""


def test_ear_for_clients_of_rats(service: RunningAttestation, world: SimulatedWorld) -> None:
    body = {"quote": encode_base64url(enclave_quote(world)), "nonce": "12345678"}
    answer = service.ask(f"/attest/SgxEnclave?{API}", body, Accept="application/eat+jwt")
    assert answer.headers["content-type"] == "application/eat+jwt"
    claims = _verified(service, answer.body.decode(), "ES256")
    module = claims["submods"]["sgx"]
    # Nothing simulated is genuine hardware.
    assert (module["ear.status"], module["ear.trustworthiness-vector"]["hardware"]) == (96, 97)
    assert claims["eat_nonce"] == "12345678"
    assert module["ear.veraison.annotated-evidence"]["confcom-nonce-bound"] is False
    assert claims["iss"] == service.url


@pytest.mark.parametrize(
    ("accept", "ear"),
    [
        ("application/eat+jwt", True),
        ("Application/EAT+JWT", True),
        ("application/json;q=0.5, application/eat+jwt; q=0.8", True),
        ("application/eat+jwt;q=0, application/json", False),
        ("application/eat+jwt; q=0.000", False),
        ("application/eat+jwt-x", False),
        ("*/*", False),
    ],
)
def test_what_a_client_accepts_decides_the_kind_of_token(
    service: RunningAttestation, world: SimulatedWorld, accept: str, ear: bool
) -> None:
    body = {"quote": encode_base64url(enclave_quote(world)), "nonce": "12345678"}
    answer = service.ask(f"/attest/SgxEnclave?{API}", body, Accept=accept)
    assert answer.headers["content-type"] == ("application/eat+jwt" if ear else "application/json")
    claims = claims_of(answer.body.decode()) if ear else answer.claims
    assert claims["eat_nonce" if ear else "nonce"] == "12345678"


def test_the_nonce_of_an_ear_has_the_size_that_eat_allows(service: RunningAttestation, world: SimulatedWorld) -> None:
    """Its readers refuse others (RFC 9711, section 4.1); those of Azure's tokens do not."""
    for nonce, good in (("", False), ("1234567", False), ("ü" * 4, True), ("n" * 88, True), ("n" * 89, False)):
        body = {"quote": encode_base64url(enclave_quote(world)), "nonce": nonce}
        answer = service.ask(f"/attest/SgxEnclave?{API}", body, Accept="application/eat+jwt")
        assert answer.status == (200 if good else 400)
        assert good or "8 to 88 bytes" in answer.error["message"]
        assert service.attest(enclave_quote(world), nonce=nonce).claims["nonce"] == nonce


def test_policies_are_set_used_and_reset(service: RunningAttestation, world: SimulatedWorld) -> None:
    quote = enclave_quote(world)
    deny = "version=1.0;authorizationrules{=> deny();};"
    answer = service.administer("/policies/SgxEnclave", wrap(deny), method="PUT")
    assert answer.claims["x-ms-policy-result"] == "Updated"
    assert service.attest(quote).error["code"] == "PolicyEvaluationError"
    assert service.administer("/policies/SgxEnclave").claims["x-ms-policy"] == wrap(deny)
    assert service.administer("/policies/OpenEnclave").claims["x-ms-policy"] != wrap(deny)
    # A broken policy leaves the one in force.
    broken = service.administer("/policies/SgxEnclave", wrap("version=1.0;"), method="PUT")
    assert broken.error["code"] == "PolicyParsingError"
    assert service.attest(quote).status == 400
    reset = service.administer("/policies/SgxEnclave:reset", "eyJhbGciOiJub25lIn0..")
    assert reset.claims["x-ms-policy-result"] == "Removed"
    assert service.attest(quote).status == 200
    unknown = service.administer("/policies/SevSnpVm")
    assert "SgxEnclave" in unknown.error["message"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('=> issueproperty(type="x-ms-sgx-tcbidentifier", value="bogus");', "'bogus' is neither standard nor early"),
        ('=> issueproperty(type="x-ms-sgx-tcbidentifer", value="17");', "found 'x-ms-sgx-tcbidentifer'"),
        ('=> issueproperty(type="x-ms-sgx-tcbidentifier", value=JmesPath("{", "a"));', "text that is not JSON"),
    ],
)
def test_a_policy_that_could_judge_nothing_is_not_put_into_force(
    service: RunningAttestation, world: SimulatedWorld, rule: str, message: str
) -> None:
    text = f"version=1.2;configurationrules{{{rule}}};authorizationrules{{=> permit();}};"
    for answer in (
        service.administer("/policies/SgxEnclave", text, method="PUT"),
        service.administer("/policies/SgxEnclave:dryRun", text),
    ):
        assert (answer.status, answer.error["code"]) == (400, "PolicyEvaluationError")
        assert message in answer.error["message"]
    assert service.attest(enclave_quote(world)).status == 200
    assert service.administer("/policies/SgxEnclave").claims["x-ms-policy"] == wrap(DEFAULT_POLICY)


def test_a_draft_with_a_fault_in_its_configuration_is_a_fault_of_the_policy(
    service: RunningAttestation, world: SimulatedWorld
) -> None:
    rule = '=> issueproperty(type="x-ms-sgx-tcbidentifier", value=JmesPath("{", "a"));'
    text = f"version=1.2;configurationrules{{{rule}}};authorizationrules{{=> permit();}};"
    answer = service.attest(enclave_quote(world), draftPolicyForAttestation=text)
    assert (answer.status, answer.error["code"]) == (400, "PolicyEvaluationError")


def test_only_administrators_see_and_set_policies(service: RunningAttestation) -> None:
    for path in (f"/policies/SgxEnclave?{API}", f"/certificates?{API}"):
        assert service.ask(path).status == 401
        assert service.ask(path, Authorization="Bearer guess").status == 401
    assert service.ask(f"/policies/SgxEnclave?{API}", wrap(PERMIT), method="PUT").status == 401


def test_tokens_of_administrators_cannot_be_guessed(service: RunningAttestation) -> None:
    path = f"/policies/SgxEnclave?{API}"
    # A window of a minute may end in between, but not three times.
    for _ in range(3):
        statuses = {service.ask(path, Authorization=f"Bearer guess {number}").status for number in range(12)}
        assert statuses <= {401, 429}
        right = service.ask(path, Authorization=f"Bearer {TOKEN}")
        if right.status == 429:
            break
    assert "wrong tokens" in right.error["message"]


def test_policies_of_an_isolated_instance_are_signed_by_a_known_signer(tmp_path: Path, world: SimulatedWorld) -> None:
    keys = [
        SigningKey.from_pem(make_key(tmp_path, kind, NOW, simulated=True).read_bytes(), "") for kind in ("rsa", "ec")
    ]
    signer = tmp_path / "signer.pem"
    signer.write_bytes(_pem(keys[0]))
    with running_attestation(tmp_path, world, trust_model="isolated", policy_signers=(str(signer),)) as service:

        def put(jws: str) -> str:
            answer = service.administer("/policies/SgxEnclave", jws, method="PUT")
            return "" if answer.status == 200 else answer.error["message"]

        assert "signed policies only" in put(wrap(PERMIT))
        assert "not known here" in put(_signed(keys[1]))
        assert put(_signed(keys[0])) == ""
        tampered = _signed(keys[0]).split(".")
        tampered[1] = wrap("version=1.0;authorizationrules{=> deny();};").split(".")[1]
        assert "signature of the policy" in put(".".join(tampered))
        # One signer brings the next, and the last one stays.
        assert _change(service, "add", keys[1], by=keys[0]).claims["x-ms-policycertificates-result"] == "IsPresent"
        assert put(_signed(keys[1])) == ""
        assert len(service.administer("/certificates").claims["x-ms-policy-certificates"]["keys"]) == 2
        assert _change(service, "remove", keys[0], by=keys[1]).claims["x-ms-policycertificates-result"] == "IsAbsent"
        assert "known policy signer" in _change(service, "add", keys[0], by=keys[0]).error["message"]
        assert "last policy signer" in _change(service, "remove", keys[1], by=keys[1]).error["message"]
        # As an object (2025-06-01) the request says itself what it is for.
        jwt = keys[1].sign({"policyCertificate": {"kty": "RSA", "x5c": _x5c(keys[0])}}, {"x5c": _x5c(keys[1])})
        for what, member in (("add", "policyCertificateToRemove"), ("remove", "policyCertificateToAdd")):
            refused = service.administer(f"/certificates:{what}", json.dumps({member: jwt}))
            assert f"policyCertificateTo{what.capitalize()}" in refused.error["message"]
        added = service.administer("/certificates:add", json.dumps({"policyCertificateToAdd": jwt}))
        assert added.claims["x-ms-policycertificates-result"] == "IsPresent"


def test_a_shared_instance_has_fixed_policies(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, trust_model="shared") as service:
        answer = service.administer("/policies/SgxEnclave", wrap(PERMIT), method="PUT")
        assert answer.error["code"] == "InvalidOperation"


def test_one_address_has_a_rate(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, attest_per_minute=2) as service:
        # Three windows of a minute cannot pass meanwhile, so of seven calls one is too many.
        answers = [service.attest(b"") for _ in range(7)]
        refused = next(answer for answer in answers if answer.status == 429)
        assert "2 attest calls in a minute" in refused.error["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 60


def test_every_appraisal_is_recorded(service: RunningAttestation, world: SimulatedWorld) -> None:
    service.attest(enclave_quote(world))
    service.attest(enclave_quote(world, debug=True))
    service.attest(enclave_quote(world), draftPolicyForAttestation="version=1.0;authorizationrules{};")
    store = AttestationStore.open(Path(service.config.store))
    records = store.records()
    assert [record["verdict"] for record in records] == ["denied", "refused", "accepted"]
    assert {record["caller"] for record in records} == {"127.0.0.1"}
    assert len(records[0]["evidence_hash"]) == 64
    store.close()


def test_a_draft_is_tried_on_recorded_evidence_before_it_is_set(
    service: RunningAttestation, world: SimulatedWorld
) -> None:
    for _ in range(2):
        service.attest(enclave_quote(world))
    service.attest(enclave_quote(world), draftPolicyForAttestation=PERMIT)
    strict = 'version=1.0;authorizationrules{[type=="x-ms-sgx-svn", value>=2] => permit();};issuancerules{};'
    tried = service.administer("/policies/SgxEnclave:dryRun", wrap(strict)).json
    assert (tried["judged"], tried["changed"]) == (2, 2)
    assert [(each["before"], each["after"]) for each in tried["outcomes"]] == [("accepted", "denied")] * 2
    assert tried["outcomes"][0]["trace"][0]["matched"] == [0]
    same = service.administer("/policies/SgxEnclave:dryRun", PERMIT).json
    assert (same["judged"], same["changed"]) == (2, 0)
    # No policy stands for the default, as where one is reset.
    empty = service.administer("/policies/SgxEnclave:dryRun", "eyJhbGciOiJub25lIn0..").json
    assert (empty["judged"], empty["policy_hash"]) == (2, policy_hash(DEFAULT_POLICY))
    broken = service.administer("/policies/SgxEnclave:dryRun", "version=1.0;")
    assert broken.error["code"] == "PolicyParsingError"
    # Nothing of it was set.
    assert service.attest(enclave_quote(world)).status == 200
    assert service.ask(f"/policies/SgxEnclave:dryRun?{API}", PERMIT).status == 401


def test_every_claim_of_the_service_is_reserved(
    service: RunningAttestation, world: SimulatedWorld, tmp_path: Path
) -> None:
    key = SigningKey.from_pem(make_key(tmp_path, "ec", NOW, simulated=True).read_bytes(), "")
    assert service.administer("/policies/SgxEnclave", _signed(key), method="PUT").status == 200
    nonce = service.ask(f"/nonces?{API}", b"").json["nonce"]
    bound = {"nonce": nonce, "bindNonce": True}
    td = world.platform.quote_td(td_report("td", bytes(64)))
    tokens = [
        service.attest(enclave_quote(world, HELD), runtimeData=_data(HELD), nonce="n"),
        service.attest(enclave_quote(world, HELD), runtimeData=_data(HELD, "JSON")),
        service.attest(enclave_quote(world, nonce.encode() + HELD), runtimeData=_data(HELD), **bound),
        service.attest(td, "TdxVm"),
    ]
    names = {name for token in tokens for name in token.claims}
    assert {"nonce", NONCE_BOUND, "x-ms-policy-signer", "x-ms-sgx-ehd", "x-ms-runtime", "tdx_mrtd"} <= names
    assert [name for name in names if not is_reserved(name)] == []
    assert [name for name in sgx_claims(ReportBody.parse(bytes(48) + b"\xff" * 336)) if not is_reserved(name)] == []


def test_no_policy_speaks_for_the_service(service: RunningAttestation, world: SimulatedWorld) -> None:
    forging = """version=1.0;
authorizationrules{=> permit();};
issuancerules{=> issue(type="own", value="free");
  => issue(type="nonce", value="forged"); => issue(type="confcom-nonce-bound", value=true);};"""
    for refused in (
        service.administer("/policies/SgxEnclave", wrap(forging), method="PUT"),
        service.administer("/policies/SgxEnclave:dryRun", forging),
        service.attest(enclave_quote(world), draftPolicyForAttestation=forging),
    ):
        assert (refused.status, refused.error["code"]) == (400, "PolicyParsingError")
        inner = refused.error["innererror"]
        assert (inner["line"], inner["column"], inner["symbol"]) == (4, 17, '"nonce"')
    # One that an older version took stays in force, and these rules have no effect.
    store = AttestationStore.open(Path(service.config.store))
    store.set_policy(AttestationType.SGX_ENCLAVE, SentPolicy(wrap(forging), forging, None), NOW)
    store.close()
    service.wait_until(lambda: "own" in service.attest(enclave_quote(world)).claims)
    claims = service.attest(enclave_quote(world)).claims
    assert claims["own"] == "free"
    assert not {"nonce", NONCE_BOUND} & claims.keys()


def test_a_dry_run_holds_no_thread_for_long(
    service: RunningAttestation, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        service.attest(enclave_quote(world))
    monkeypatch.setattr("confcom.services.attestation.appraiser.DRY_RUN_FOR", -1.0)
    refused = service.administer("/policies/SgxEnclave:dryRun", PERMIT)
    assert refused.status == 400
    assert "given up after -1 seconds and 0 of 2 records" in refused.error["message"]


def test_the_record_is_read_in_pages(service: RunningAttestation, world: SimulatedWorld) -> None:
    for _ in range(3):
        service.attest(enclave_quote(world))
    first = service.ask(f"/audit?{API}&limit=2", Authorization=f"Bearer {TOKEN}")
    rows = [json.loads(line) for line in first.body.splitlines()]
    assert [row["verdict"] for row in rows] == ["accepted", "accepted"]
    assert rows[0]["at"] == "2026-11-21T09:30:00Z"
    rest = service.ask(f"/audit?{API}&before={rows[-1]['id']}", Authorization=f"Bearer {TOKEN}")
    assert len(rest.body.splitlines()) == 1
    for wrong in ("limit=-1", "limit=x", "limit=5000", "before=1e9"):
        assert service.ask(f"/audit?{API}&{wrong}", Authorization=f"Bearer {TOKEN}").status == 400
    assert service.ask(f"/audit?{API}").status == 401
    service.attest(enclave_quote(world, debug=True))
    for query, count in (("verdict=refused", 1), ("kind=TdxVm", 0), ("since=2026-11-21T09:30:00Z", 4), ("caller=x", 0)):
        found = service.ask(f"/audit?{API}&{query}", Authorization=f"Bearer {TOKEN}")
        assert (found.status, len(found.body.splitlines())) == (200, count), query
    out_of_range = ("since=9999-12-31T23:59:59-14:00", "until=0001-01-01T00:00:00%2B14:00")
    for wrong in ("since=yesterday", "until=2026-11-21T09:30:00", "kind=Tpm", "caller=a%00", *out_of_range):
        assert service.ask(f"/audit?{API}&{wrong}", Authorization=f"Bearer {TOKEN}").status == 400


def test_the_record_is_exported_while_the_service_runs(
    service: RunningAttestation, world: SimulatedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    for debug in (False, True):
        service.attest(enclave_quote(world, debug=debug))
    words = ["attestation", "audit", "--store", service.config.store]
    capsys.readouterr()  # the log
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["refused", "accepted"]
    assert run([*words, "--verdict", "accepted", "--since", "2026-11-21T09:30:00Z"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[1:]
    assert run([*words, "--kind", "Tpm"]) == 2
    assert "SgxEnclave" in capsys.readouterr().err
    assert run(["attestation", "audit", "--store", f"{service.config.store}x"]) == 2


def test_records_are_forgotten_after_the_retention_period(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_service.FORGET_EVERY", 0.05)
    with running_attestation(tmp_path, world, audit_days=30) as service:
        service.attest(enclave_quote(world))
        service.clock.now += timedelta(days=31)
        service.wait_until(lambda: not service.ask(f"/audit?{API}", Authorization=f"Bearer {TOKEN}").body)


def test_a_nonce_of_the_service_is_bound_to_the_evidence(service: RunningAttestation, world: SimulatedWorld) -> None:
    nonce = service.ask(f"/nonces?{API}", b"").json["nonce"]
    quote = enclave_quote(world, nonce.encode() + HELD)
    bound = {"runtimeData": _data(HELD), "nonce": nonce, "bindNonce": True}
    claims = service.attest(quote, **bound).claims
    assert (claims["nonce"], claims["confcom-nonce-bound"]) == (nonce, True)
    other = service.ask(f"/nonces?{API}", b"").json["nonce"]
    assert other != nonce
    assert "does not vouch" in service.attest(quote, **(bound | {"nonce": other})).error["message"]
    # Evidence that was seen on its way gives no second token.
    assert "was used before" in service.attest(quote, **bound).error["message"]
    for foreign in (None, "", "n", nonce[:-2] + "AA", "A" * 54):
        assert "none of this service's" in service.attest(quote, **(bound | {"nonce": foreign})).error["message"]
    service.clock.now += timedelta(minutes=6)
    assert "expired" in service.attest(quote, **bound).error["message"]
    # Without binding a nonce travels through, as Azure's does.
    plain = service.attest(enclave_quote(world), nonce="n").claims
    assert (plain["nonce"], plain["confcom-nonce-bound"]) == ("n", False)


def test_a_nonce_is_used_once_among_replicas_with_different_clocks(
    service: RunningAttestation, world: SimulatedWorld
) -> None:
    def use(nonce: str) -> Answer:
        quote = enclave_quote(world, nonce.encode())
        return service.attest(quote, nonce=nonce, bindNonce=True)

    service.clock.now = NOW + timedelta(minutes=4)
    ahead = service.ask(f"/nonces?{API}", b"").json["nonce"]
    service.clock.now = NOW
    assert use(ahead).status == 200
    service.clock.now = NOW + timedelta(minutes=6)
    assert use(service.ask(f"/nonces?{API}", b"").json["nonce"]).status == 200
    assert "used before" in use(ahead).error["message"]


def test_policies_outlive_a_restart(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world) as service:
        before = service.ask("/certs").json
        service.administer("/policies/SgxEnclave", wrap(PERMIT), method="PUT")
    with running_attestation(tmp_path, world) as service:
        assert service.administer("/policies/SgxEnclave").claims["x-ms-policy"] == wrap(PERMIT)
        assert service.ask("/certs").json == before


def test_in_a_cluster_it_keeps_its_certificate_in_a_secret(tmp_path: Path, world: SimulatedWorld) -> None:
    served = []
    with CertificateApi("confcom-attestation-tls", "confcom-attestation-ca") as api:
        cluster = {
            "insecure_http": False,
            "tls_secret": "confcom-attestation-tls",
            "kubeconfig": api.kubeconfig(tmp_path),
        }
        for _ in range(2):
            with running_attestation(tmp_path, world, url="https://attest.example", **cluster) as service:
                host, _, port = service.config.listen.rpartition(":")
                served.append(ssl.get_server_certificate((host, int(port))))
                assert service.url == "https://attest.example/simulated"
        (leaf,) = {x509.load_pem_x509_certificate(pem.encode()) for pem in served}
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(api.published.encode()))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "confcom-attestation.confcom-system.svc" in names.get_values_for_type(x509.DNSName)


def test_readiness_says_that_a_key_cannot_be_used(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_service.LOOK_AT_FILES", 0.05)
    with running_attestation(tmp_path, world) as service:
        (tmp_path / "keys" / "bad.pem").write_bytes(b"no key")
        service.wait_until(lambda: "bad.pem" in service.ask("//readyz").json.get("reason", ""))
        assert service.ask("//readyz").status == 503
        assert service.attest(enclave_quote(world)).status == 200


def test_keys_are_rotated_and_revoked_by_command(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_service.LOOK_AT_FILES", 0.05)
    with running_attestation(tmp_path, world) as service:

        def signer() -> str:
            return str(ReadJws.parse(service.attest(enclave_quote(world)).json["token"]).header["kid"])

        def published() -> list[str]:
            return [key["kid"] for key in service.ask("/certs").json["keys"]]

        first = signer()
        service.clock.now = datetime.fromtimestamp(time.time(), UTC) + timedelta(minutes=1)
        assert run(["attestation", "new-keys", "--simulated", service.config.keys]) == 0
        service.wait_until(lambda: len(published()) == 4)
        store = ["--store", service.config.store]
        assert run(["attestation", "revoke-key", first, *store]) == 0
        assert f"revoked {first}: in no key set within seconds" in capsys.readouterr().out
        service.wait_until(lambda: first not in published())
        assert signer() in published()
        for unknown in ("unknown", "-5HmhMw16", "--5Hm", "-BLdWqy4lEUxeLIB-gB_TB0B-hX_Q0McBWXsD2GRE0Y", "-qvh", "--qv"):
            assert run(["attestation", "revoke-key", unknown, *store]) == 2
            said = capsys.readouterr().err
            assert f"no key '{unknown}' was published" in said
            assert "'kid' of GET /certs" in said
        assert run(["attestation", "new-keys", str(tmp_path / "nowhere")]) == 2


def test_an_instance_is_of_one_world(world: SimulatedWorld) -> None:
    with pytest.raises(ConfigError, match="never both"):
        simulated_world(TrustRoots(TrustRoots.intel().roots + world.trust_roots.roots))
    assert not simulated_world(TrustRoots.intel())


def _pem(key: SigningKey) -> bytes:
    return key.certificate.public_bytes(Encoding.PEM)


def _x5c(key: SigningKey) -> list[str]:
    found: list[str] = key.jwk()["x5c"]
    return found


def _signed(key: SigningKey) -> str:
    return key.sign({"AttestationPolicy": encode_base64url(PERMIT.encode())}, {"x5c": _x5c(key)})


def _change(service: RunningAttestation, what: str, key: SigningKey, *, by: SigningKey) -> Any:
    jwt = by.sign({"policyCertificate": {"kty": "RSA", "x5c": _x5c(key)}}, {"x5c": _x5c(by)})
    return service.administer(f"/certificates:{what}", json.dumps(jwt))
