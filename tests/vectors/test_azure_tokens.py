"""Recorded exchanges with Azure Attestation: the same requests give the same claims, value by value."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from confcom.formats.evidence import EvidenceFile
from confcom.tokens.azure import (
    AttestationType,
    check_binding,
    evidence_claims,
    policy_claims,
    policy_hash,
    quote_claims,
    read_request,
    request_claims,
)
from confcom.tokens.policy_evaluation import Decisions
from confcom.tokens.policy_language import parse_policy

OF_THE_ISSUER = {"iss", "jti", "iat", "nbf", "exp", "x-ms-policy-hash", "x-ms-policy-signer"}
COLLATERAL = ("qeidcertshash", "qeidcrlhash", "qeidhash", "tcbinfocertshash", "tcbinfocrlhash", "tcbinfohash")
PERMIT = "version=1.0; authorizationrules{=> permit();}; issuancerules{};"
TWINS = """version= 1.0;authorizationrules { c:[type=="$is-debuggable"] => permit(); };
issuancerules {c:[type=="$is-debuggable"] => issue(type="is-debuggable", value=c.value);
c:[type=="$sgx-mrsigner"] => issue(type="sgx-mrsigner", value=c.value);
c:[type=="$sgx-mrenclave"] => issue(type="sgx-mrenclave", value=c.value);
c:[type=="$product-id"] => issue(type="product-id", value=c.value);
c:[type=="$svn"] => issue(type="svn", value=c.value);
c:[type=="$tee"] => issue(type="tee", value=c.value);};"""


@pytest.mark.vectors
def test_every_recorded_pair(vectors: Path) -> None:
    pairs = sorted((vectors / "maa").glob("*/request.json"))
    assert len(pairs) == 9
    for path in pairs:
        token = json.loads((path.parent / "token.decoded.json").read_text())
        assert _claims(path, token) == {
            name: value for name, value in token["claims"].items() if name not in OF_THE_ISSUER
        }, path.parent.name


def _claims(path: Path, token: dict[str, Any]) -> dict[str, Any]:
    kind = AttestationType(token["url"].split("/")[2].split("?")[0])
    request = read_request(path.read_bytes(), kind)
    file = EvidenceFile.parse(request.evidence)
    check_binding(file.quote, request)
    recorded = token["claims"]["x-ms-sgx-collateral"]
    # The collateral of 2021 is gone: its hashes are Azure's, that of the quote is ours.
    hashes = {name: recorded[name] for name in COLLATERAL}
    named = quote_claims(file.quote)
    policy = TWINS if "is-debuggable" in token["claims"] else PERMIT
    decision = Decisions(parse_policy(policy)).on(policy_claims(named))
    assert decision.permitted
    if policy is PERMIT:
        assert token["claims"]["x-ms-policy-hash"] == policy_hash(PERMIT)
    hashes["quotehash"] = sha256(request.evidence).hexdigest()
    return evidence_claims(named) | request_claims(request, file.quote.tee, hashes) | decision.claims()
