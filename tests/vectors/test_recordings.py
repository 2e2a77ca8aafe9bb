"""Evidence that Azure Attestation accepted, read as it read it: identity and held data are those of its tokens."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from pathlib import Path

import pytest

from confcom.appraisal.result import identity
from confcom.formats.evidence import EvidenceFile, EvidenceKind

pytestmark = [pytest.mark.vectors, pytest.mark.promise("M12")]


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_recorded_evidence_is_bound_to_its_runtime_data_and_named_as_in_the_token(vectors: Path) -> None:
    folders = sorted((vectors / "maa").glob("*/"))
    assert folders
    for folder in folders:
        request = json.loads((folder / "request.json").read_text())
        claims = json.loads((folder / "token.decoded.json").read_text())["claims"]
        text = request.get("quote") or request["report"]
        evidence = EvidenceFile.parse(text.encode())
        assert evidence.content == (folder / "evidence.bin").read_bytes()
        wrapped = "report" in request
        assert (evidence.kind is EvidenceKind.OE_REPORT) is wrapped
        held = decode(request["runtimeData"]["data"])
        assert evidence.quote.report_data[:32] == sha256(held).digest()
        assert evidence.quote.report_data.hex() == claims.get("x-ms-sgx-report-data", evidence.quote.report_data.hex())
        who = identity(evidence.quote.body)
        assert who["mr_enclave"] == claims["x-ms-sgx-mrenclave"]
        assert who["mr_signer"] == claims["x-ms-sgx-mrsigner"]
        assert who["isv_prod_id"] == claims["x-ms-sgx-product-id"]
        assert who["isv_svn"] == claims["x-ms-sgx-svn"]
        assert who["debug"] == claims["x-ms-sgx-is-debuggable"]


@pytest.mark.parametrize("sdk", ["oe-sdk", "intel-sdk"])
@pytest.mark.parametrize("build", ["debug", "release"])
def test_azures_samples_vouch_for_their_enclave_held_data(vectors: Path, sdk: str, build: str) -> None:
    sample = json.loads((vectors / "azure-attestation" / sdk / f"enclave.info.{build}.json").read_text())
    evidence = EvidenceFile.parse(sample["QuoteHex"].encode())
    held = bytes.fromhex(sample["EnclaveHeldDataHex"])
    assert evidence.quote.report_data[:32] == sha256(held).digest()
    who = identity(evidence.quote.body)
    assert who["mr_enclave"] == sample["MrEnclaveHex"].lower()
    assert who["mr_signer"] == sample["MrSignerHex"].lower()
    assert who["debug"] is (build == "debug")
