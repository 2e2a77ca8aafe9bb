"""The server's side agrees with the client's, and takes what real clients send."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from confcom.errors import FormatError
from confcom.protocols import pcs
from confcom.protocols.pcs import Answer, Api, Dialect, PckCertificateAnswer, build_request
from confcom.protocols.pcs_service import (
    ServedRequest,
    document_response,
    encode_crl,
    parse_document,
    parse_pck_certificate,
    parse_request,
    pck_certificate_response,
)

FMSPC = bytes.fromhex("00906ED50000")
CHAIN = b"-----BEGIN CERTIFICATE-----\nMII+/A==\n-----END CERTIFICATE-----\n"
DOCUMENTS = [
    pcs.TcbInfoRequest("sgx", FMSPC),
    pcs.TcbInfoRequest("tdx", FMSPC, "early"),
    pcs.TcbInfoRequest("sgx", FMSPC, 19),
    pcs.EnclaveIdentityRequest("sgx"),
    pcs.EnclaveIdentityRequest("sgx", "qve"),
    pcs.EnclaveIdentityRequest("sgx", "qae", 3),
    pcs.EnclaveIdentityRequest("tdx", "qe", "early"),
    pcs.PckCrlRequest("platform", "der"),
    pcs.PckCrlRequest("processor", None),
    pcs.PckCrlRequest("processor", "pem"),
    pcs.RootCaCrlRequest(),
    pcs.CrlRequest("https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"),
    pcs.TcbEvaluationDataNumbersRequest("tdx"),
]


def read(target: str) -> ServedRequest | None:
    parts = urlsplit(target)
    return parse_request(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)))


@pytest.mark.parametrize(
    "request_",
    [
        *DOCUMENTS,
        pcs.PckCertRequest(b"\x01" * 16, 0x0203, b"\x00\x01", qe_id=b"\xaa" * 16),
        pcs.PckCertRequest(b"\x01" * 16, 0x0203, b"\x00\x01", qe_id=b"\xaa", encrypted_ppid=b"\x02" * 384),
        pcs.FmspcsRequest("client"),
    ],
)
def test_what_a_client_asks_is_what_the_server_reads(request_):
    assert read(build_request(request_, Api(Dialect.PCCS)).target) == ServedRequest(4, request_)


def test_all_pck_certificates_of_a_platform_are_asked_in_intels_dialect():
    asked = pcs.PckCertsRequest(bytes(2), encrypted_ppid=b"\x02" * 384)
    assert read(build_request(asked, Api(Dialect.PCS)).target) == ServedRequest(4, asked)


@pytest.mark.parametrize("request_", DOCUMENTS)
@pytest.mark.parametrize("version", [2, 3, 4])
def test_what_a_server_answers_is_what_the_client_reads(request_, version):
    response = document_response(ServedRequest(version, request_), Answer(b"0\x03abc", CHAIN), request_id="r")
    assert response.header("Request-ID") == "r"
    assert (response.header("Warning") is not None) == (version < 4)
    answer = parse_document(request_, response)
    if isinstance(request_, pcs.RootCaCrlRequest | pcs.CrlRequest):
        assert answer.issuer_chain == b""
    else:
        assert answer.issuer_chain == CHAIN
    if not isinstance(request_, pcs.PckCrlRequest | pcs.RootCaCrlRequest):
        assert answer.body == b"0\x03abc"


def test_crls_come_in_the_encoding_of_the_service():
    der = b"0\x03abc"

    def body(request: pcs.Request) -> bytes:
        return document_response(ServedRequest(4, request), Answer(der, CHAIN), request_id="r").body

    assert body(pcs.PckCrlRequest("platform", None)) == b"3003616263"
    assert body(pcs.PckCrlRequest("platform", "der")) == der
    assert body(pcs.PckCrlRequest("platform", "pem")) == b"-----BEGIN X509 CRL-----\nMANhYmM=\n-----END X509 CRL-----\n"
    assert body(pcs.RootCaCrlRequest()) == b"3003616263"
    assert encode_crl(bytes(100), "pem").splitlines()[1] == b"A" * 64


@pytest.mark.parametrize("request_", [pcs.CrlRequest("x"), pcs.RootCaCrlRequest(), pcs.PckCrlRequest("platform")])
def test_every_crl_has_its_chain_because_azures_client_takes_none_without(request_):
    answer = document_response(ServedRequest(4, request_), Answer(b"0", CHAIN), request_id="r")
    assert answer.header("SGX-PCK-CRL-Issuer-Chain") == quote(CHAIN, safe="")


@pytest.mark.parametrize(
    ("written", "uri"),
    [
        (
            "https%253a%252f%252fcertificates.trustedservices.intel.com%252fintelsgxrootca.crl",
            "https://certificates.trustedservices.intel.com/intelsgxrootca.crl",
        ),
        (
            "https%253a%252f%252fapi.trustedservices.intel.com%252fv3%252fpckcrl%253fca%253dplatform%2526encoding%253dpem",
            "https://api.trustedservices.intel.com/v3/pckcrl?ca=platform&encoding=pem",
        ),
        ("https%3A%2F%2Fx%2Fa%253Fb", "https://x/a%3Fb"),
        ("https://x/a", "https://x/a"),
        ("https%25253a%25252f%25252fx", "https%3a%2f%2fx"),
    ],
)
@pytest.mark.parametrize("name", ["pckcrl", "crl"])
def test_a_distribution_point_is_read_escaped_once_or_twice(name, written, uri):
    assert read(f"/sgx/certification/v4/{name}?uri={written}") == ServedRequest(4, pcs.CrlRequest(uri))


@pytest.mark.parametrize(
    ("api_version", "encoding"),
    [("2018-10-01-preview", "der"), ("2020-02-12-preview", "pem"), ("2021-07-22-preview", "pem")],
)
def test_azures_client_gets_crls_in_the_encoding_of_its_interface(api_version, encoding):
    served = read(f"/sgx/certification/v4/pckcrl?uri=https%3A%2F%2Fx&clientid=x&api-version={api_version}")
    assert served == ServedRequest(4, pcs.CrlRequest("https://x", encoding), azure=True)
    body = document_response(served, Answer(b"0\x03abc", CHAIN), request_id="r").body
    assert body == encode_crl(b"0\x03abc", encoding)


def test_the_chain_header_of_a_tcb_info_has_the_name_of_its_version():
    old, new = "SGX-TCB-Info-Issuer-Chain", "TCB-Info-Issuer-Chain"
    for version, azure, expected in (
        (2, False, [old]),
        (2, True, [old]),
        (3, False, [old]),
        (3, True, [old]),
        (4, False, [new]),
        (4, True, [old, new]),
    ):
        served = ServedRequest(version, pcs.TcbInfoRequest("sgx", FMSPC), azure=azure)
        names = [found for found, _ in document_response(served, Answer(b"x", CHAIN), request_id="r").headers]
        assert [found for found in names if "Issuer" in found] == expected


def test_a_pck_certificate_comes_back():
    answer = PckCertificateAnswer(b"leaf", CHAIN, b"\x01" * 18, FMSPC, "processor")
    served = ServedRequest(4, pcs.PckCertRequest(bytes(16), 0, bytes(2), qe_id=b"\x01"))
    response = pck_certificate_response(served, answer, request_id="r", max_age=9)
    assert response.header("Content-Type") == "application/x-pem-file"
    assert parse_pck_certificate(response) == answer
    bare = PckCertificateAnswer(b"leaf", CHAIN, b"\x01" * 18)
    assert parse_pck_certificate(pck_certificate_response(served, bare, request_id="r", max_age=9)) == bare


def test_a_pck_certificate_is_json_for_azures_client():
    answer = PckCertificateAnswer(b"leaf\n", CHAIN, b"\x0a" * 18, FMSPC, "processor")
    served = ServedRequest(4, pcs.PckCertRequest(bytes(16), 0, bytes(2), qe_id=b"\x01"), azure=True)
    response = pck_certificate_response(served, answer, request_id="r", max_age=9)
    assert response.header("Content-Type") == "application/json"
    assert json.loads(response.body) == {
        "pckCert": "leaf\n",
        "sgx-Pck-Certificate-Issuer-Chain": quote(CHAIN, safe=""),
        "sgx-Tcbm": "0a" * 18,
        "sgx-Fmspc": FMSPC.hex(),
        "sgx-Pck-Certificate-CA-Type": "processor",
        "cacheMaxAge": "9",
    }


@pytest.mark.parametrize(
    ("target", "request_"),
    [
        ("/sgx/certification/v3/tcb?fmspc=00906ED50000&update=standard", pcs.TcbInfoRequest("sgx", FMSPC)),
        ("/sgx/certification/v4/pckcrl?ca=PLATFORM&encoding=der", pcs.PckCrlRequest("platform", "der")),
        (
            "/sgx/certification/v4/pckcrl?uri=https://x&clientid=production_client&api-version=2018-10-01-preview",
            pcs.CrlRequest("https://x"),
        ),
        (
            f"/sgx/certification/v4/pckcert?qeid={'AB' * 16}&cpusvn={'0b' * 16}&pcesvn=0D00&pceid=0000&encrypted_ppid=",
            pcs.PckCertRequest(b"\x0b" * 16, 13, bytes(2), qe_id=b"\xab" * 16),
        ),
        ("/sgx/certification/v4/fmspcs?platform=e5", pcs.FmspcsRequest("E5")),
    ],
)
def test_what_real_clients_send(target, request_):
    served = read(target)
    assert served is not None
    assert served.request == request_


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/sgx/certification/v5/tcb",
        "/sgx/certification/v1/tcb",
        "/sgx/certification/tcb",
        "/tdx/certification/v3/tcb",
        "/tdx/certification/v4/pckcrl",
        "/sgx/certification/v4/nothing",
        "/sgx/certification/v4/tcb/x",
        "/sev/certification/v4/tcb",
        "/sgx/certification/v4",
    ],
)
def test_other_paths_are_not_served(path):
    assert parse_request(path, {}) is None


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("tcb", "fmspc"),
        ("tcb?fmspc=00906ED5000", "fmspc"),
        ("tcb?fmspc=zz906ED50000", "fmspc"),
        ("tcb?fmspc=00906ED50000&update=late", "update"),
        ("tcb?fmspc=00906ED50000&update=early&tcbEvaluationDataNumber=3", "tcbEvaluationDataNumber"),
        ("tcb?fmspc=00906ED50000&tcbEvaluationDataNumber=-1", "tcbEvaluationDataNumber"),
        ("tcb?fmspc=00906ED50000&tcbEvaluationDataNumber=%D9%A3", "tcbEvaluationDataNumber"),
        ("tcb?fmspc=" + "0" * 3000, "fmspc"),
        ("pckcrl", "ca"),
        ("pckcrl?ca=root", "ca"),
        ("pckcrl?ca=platform&encoding=xml", "encoding"),
        ("crl", "uri"),
        ("pckcert", "qeid"),
        (f"pckcert?qeid=a&cpusvn={'00' * 16}&pcesvn=0000&pceid=0000", "qeid"),
        (f"pckcert?qeid={'ab' * 131}&cpusvn={'00' * 16}&pcesvn=0000&pceid=0000", "qeid"),
        ("pckcert?qeid=ab", "cpusvn"),
        (f"pckcert?qeid=ab&cpusvn={'00' * 16}&pcesvn=0&pceid=0000", "pcesvn"),
        (f"pckcert?qeid=ab&cpusvn={'00' * 16}&pcesvn=0000", "pceid"),
        (f"pckcert?qeid=ab&cpusvn={'00' * 16}&pcesvn=0000&pceid=0000&encrypted_ppid=00", "encrypted_ppid"),
        ("pckcerts?pceid=0000", "encrypted_ppid"),
        ("fmspcs?platform=E4", "platform"),
    ],
)
def test_a_wrong_parameter_is_named(target, field):
    with pytest.raises(FormatError) as caught:
        read(f"/sgx/certification/v4/{target}")
    assert caught.value.field == field
