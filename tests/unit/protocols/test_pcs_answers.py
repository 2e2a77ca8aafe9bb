"""Answers as values, and everything that is not one."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from confcom.errors import FormatError
from confcom.protocols import pcs
from confcom.protocols.pcs import Answer, HttpResponse
from confcom.protocols.pcs_service import (
    PckCertificateEntry,
    decode_chain,
    parse_document,
    parse_pck_certificate,
    parse_pck_certificates,
    pck_issuer_chain,
)

CHAIN = b"-----BEGIN CERTIFICATE-----\nMII+/A==\n-----END CERTIFICATE-----\n"
TCB = pcs.TcbInfoRequest("sgx", bytes(6))


@pytest.mark.parametrize(
    ("request_", "header"),
    [
        (TCB, "TCB-Info-Issuer-Chain"),
        (TCB, "SGX-TCB-Info-Issuer-Chain"),
        (pcs.EnclaveIdentityRequest("tdx"), "SGX-Enclave-Identity-Issuer-Chain"),
        (pcs.EnclaveIdentityRequest("sgx"), "sgx-qe-identity-issuer-chain"),
        (pcs.PckCrlRequest("platform"), "SGX-PCK-CRL-Issuer-Chain"),
        (pcs.TcbEvaluationDataNumbersRequest("sgx"), "TCB-Evaluation-Data-Numbers-Issuer-Chain"),
    ],
)
@pytest.mark.parametrize("safe", ["", "+/=-\n"])
def test_a_chain_is_taken_from_its_header(request_, header, safe):
    response = HttpResponse(200, ((header, quote(CHAIN, safe=safe)),), b"body")
    assert parse_document(request_, response) == Answer(b"body", CHAIN)


@pytest.mark.parametrize("request_", [pcs.RootCaCrlRequest(), pcs.CrlRequest("https://x")])
def test_lists_of_the_root_come_without_a_chain(request_):
    assert parse_document(request_, HttpResponse(200, (), b"0\x82")) == Answer(b"0\x82")


@pytest.mark.parametrize(
    "response",
    [
        HttpResponse(200, (("TCB-Info-Issuer-Chain", quote(CHAIN)),), b""),
        HttpResponse(200, (), b"body"),
        HttpResponse(200, (("TCB-Info-Issuer-Chain", "x"),), b"body"),
        HttpResponse(200, (("TCB-Info-Issuer-Chain", quote(CHAIN) + "%41" * 40_000),), b"body"),
        HttpResponse(200, (("SGX-Enclave-Identity-Issuer-Chain", quote(CHAIN)),), b"body"),
    ],
)
def test_an_answer_without_body_or_chain_is_malformed(response):
    with pytest.raises(FormatError):
        parse_document(TCB, response)


def test_a_pck_certificate_with_headers():
    headers = (
        ("SGX-PCK-Certificate-Issuer-Chain", quote(CHAIN)),
        ("SGX-TCBm", "AB" * 16 + "0D00"),
        ("SGX-FMSPC", "00906ED50000"),
        ("SGX-PCK-Certificate-CA-Type", "platform"),
    )
    answer = parse_pck_certificate(HttpResponse(200, headers, b"leaf"))
    assert answer.certificate == b"leaf"
    assert answer.issuer_chain == CHAIN == pck_issuer_chain(HttpResponse(200, headers))
    assert answer.tcbm == b"\xab" * 16 + b"\x0d\x00"
    assert (answer.fmspc, answer.ca) == (bytes.fromhex("00906ed50000"), "platform")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SGX-TCBm", "AB"),
        ("SGX-TCBm", "zz" * 18),
        ("SGX-TCBm", " " + "ab" * 18),
        ("SGX-FMSPC", "00"),
        ("SGX-PCK-Certificate-CA-Type", "root"),
        ("SGX-PCK-Certificate-Issuer-Chain", "none"),
    ],
)
def test_a_pck_certificate_with_a_wrong_header_is_malformed(name, value):
    right = {
        "SGX-PCK-Certificate-Issuer-Chain": quote(CHAIN),
        "SGX-TCBm": "AB" * 18,
        "SGX-FMSPC": "00906ED50000",
        "SGX-PCK-Certificate-CA-Type": "platform",
    }
    with pytest.raises(FormatError, match=name):
        parse_pck_certificate(HttpResponse(200, tuple((right | {name: value}).items()), b"leaf"))


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"pckCert":1}', b'[{"a":', b"\xff", b"[" * 100_000])
def test_other_json_is_malformed(body):
    with pytest.raises(FormatError):
        parse_pck_certificates(body)


def test_a_list_over_the_limit_is_refused():
    with pytest.raises(FormatError, match="over the limit"):
        parse_pck_certificates(b" " * ((4 << 20) + 1))


def test_a_list_of_certificates():
    certificates = b'[{"tcb":{},"tcbm":"%s","cert":"%s"},{"tcbm":"%s","cert":"Not available"}]' % (
        b"01" * 18,
        quote(CHAIN).encode(),
        b"02" * 18,
    )
    assert parse_pck_certificates(certificates) == (
        PckCertificateEntry(b"\x01" * 18, CHAIN),
        PckCertificateEntry(b"\x02" * 18, None),
    )


def test_a_bare_plus_is_a_digit_of_base64():
    assert decode_chain("-----BEGIN CERTIFICATE-----%0AMII+", "x", "y") == b"-----BEGIN CERTIFICATE-----\nMII+"
