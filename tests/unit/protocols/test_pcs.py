"""Requests as values: what is no request is refused when it is made, and descriptions tell no secrets."""

from __future__ import annotations

import pytest

from confcom.errors import FormatError
from confcom.protocols import pcs


@pytest.mark.parametrize(
    "make",
    [
        lambda: pcs.TcbInfoRequest("sgx", b"\0" * 5),
        lambda: pcs.EnclaveIdentityRequest("tdx", "qve"),
        lambda: pcs.PckCertRequest(bytes(15), 0, bytes(2)),
        lambda: pcs.PckCertRequest(bytes(16), 0x10000, bytes(2)),
        lambda: pcs.PckCertRequest(bytes(16), -1, bytes(2)),
        lambda: pcs.PckCertRequest(bytes(16), 0, bytes(3)),
        lambda: pcs.PckCertRequest(bytes(16), 0, bytes(2), qe_id=b""),
        lambda: pcs.PckCertRequest(bytes(16), 0, bytes(2), qe_id=bytes(131)),
        lambda: pcs.PckCertRequest(bytes(16), 0, bytes(2), encrypted_ppid=bytes(383)),
        lambda: pcs.PckCertRequest(bytes(16), 0, bytes(2), platform_manifest=b""),
        lambda: pcs.PckCertsRequest(bytes(1)),
        lambda: pcs.PckCertsRequest(bytes(2), platform_manifest=bytes(65537)),
    ],
)
def test_a_value_of_the_wrong_size_is_no_request(make):
    with pytest.raises(FormatError) as caught:
        make()
    assert caught.value.structure == "PCS request"
    assert caught.value.field


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            pcs.TcbInfoRequest("tdx", bytes.fromhex("00906ed50000"), "early"),
            "TDX TCB info of FMSPC 00906ed50000 (early",
        ),
        (pcs.TcbInfoRequest("sgx", bytes(6), 19), "(set 19)"),
        (pcs.EnclaveIdentityRequest("tdx"), "TD QE identity (standard set)"),
        (pcs.EnclaveIdentityRequest("sgx", "qve"), "QVE identity"),
        (pcs.PckCrlRequest("processor"), "PCK CRL of the processor CA"),
        (pcs.RootCaCrlRequest(), "root CA CRL"),
        (pcs.CrlRequest("https://x"), "CRL of https://x"),
        (pcs.PckCertRequest(bytes(16), 1, bytes(2), qe_id=b"\xab"), "PCK certificate of QE_ID ab"),
        (pcs.TcbEvaluationDataNumbersRequest("sgx"), "SGX TCB evaluation data numbers"),
        (pcs.FmspcsRequest("E5"), "FMSPCs (E5)"),
    ],
)
def test_a_request_says_what_it_asks_for(request_, text):
    assert text in pcs.describe(request_)


def test_a_description_keeps_the_ppid_and_the_manifest_to_itself():
    asked = pcs.PckCertRequest(bytes(16), 1, bytes(2), encrypted_ppid=b"\x5a" * 384, platform_manifest=b"\x5a" * 9)
    assert "5a5a" not in pcs.describe(asked)
    assert "5a5a" not in pcs.describe(pcs.PckCertsRequest(bytes(2), encrypted_ppid=b"\x5a" * 384))


def test_headers_are_found_in_any_case():
    response = pcs.HttpResponse(200, (("tcb-INFO-issuer-chain", "a"), ("TCB-Info-Issuer-Chain", "b")))
    assert response.header("TCB-Info-Issuer-Chain") == "a"
    assert response.header("Warning") is None


def test_a_target_is_percent_encoded():
    assert (
        pcs.HttpRequest("/crl", (("uri", "https://x/y?a=b&c=d"),)).target
        == "/crl?uri=https%3A%2F%2Fx%2Fy%3Fa%3Db%26c%3Dd"
    )
    assert pcs.HttpRequest("/crl").target == "/crl"
