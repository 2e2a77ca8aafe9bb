"""Each request in the words of each service (dcap.md §7.1 to 7.3)."""

from __future__ import annotations

import json

import pytest

from confcom.errors import CollateralNotFound
from confcom.protocols import pcs
from confcom.protocols.pcs import Api, Dialect, build_request

PCS, PCCS, THIM = Api(Dialect.PCS), Api(Dialect.PCCS), Api(Dialect.THIM)
PCCS_V3 = Api(Dialect.PCCS, 3)
FMSPC = bytes.fromhex("00906ED50000")
V4 = "/sgx/certification/v4"
AZURE = "clientid=production_client&api-version=2018-10-01-preview"


@pytest.mark.parametrize(
    ("request_", "api", "target"),
    [
        (pcs.TcbInfoRequest("sgx", FMSPC), PCS, f"{V4}/tcb?fmspc=00906ed50000"),
        (pcs.TcbInfoRequest("sgx", FMSPC), PCCS_V3, "/sgx/certification/v3/tcb?fmspc=00906ed50000"),
        (pcs.TcbInfoRequest("tdx", FMSPC, "early"), PCS, "/tdx/certification/v4/tcb?fmspc=00906ed50000&update=early"),
        (pcs.TcbInfoRequest("sgx", FMSPC, 19), PCS, f"{V4}/tcb?fmspc=00906ed50000&tcbEvaluationDataNumber=19"),
        (pcs.TcbInfoRequest("sgx", FMSPC), THIM, f"{V4}/tcb?fmspc=00906ed50000&{AZURE}"),
        (pcs.EnclaveIdentityRequest("sgx"), PCCS, f"{V4}/qe/identity"),
        (
            pcs.EnclaveIdentityRequest("tdx", "qe", 7),
            PCS,
            "/tdx/certification/v4/qe/identity?tcbEvaluationDataNumber=7",
        ),
        (pcs.EnclaveIdentityRequest("sgx", "qae"), PCS, f"{V4}/qae/identity"),
        (pcs.PckCrlRequest("platform"), PCS, f"{V4}/pckcrl?ca=platform&encoding=der"),
        (pcs.PckCrlRequest("processor", None), PCCS, f"{V4}/pckcrl?ca=processor"),
        (
            pcs.PckCrlRequest("platform"),
            THIM,
            (
                f"{V4}/pckcrl?uri=https%3A%2F%2Fapi.trustedservices.intel.com%2Fsgx%2Fcertification%2Fv4%2Fpckcrl"
                f"%3Fca%3Dplatform%26encoding%3Dder&{AZURE}"
            ),
        ),
        (pcs.RootCaCrlRequest(), PCCS, f"{V4}/rootcacrl"),
        (
            pcs.RootCaCrlRequest(),
            THIM,
            f"{V4}/pckcrl?uri=https%3A%2F%2Fcertificates.trustedservices.intel.com%2FIntelSGXRootCA.der&{AZURE}",
        ),
        (pcs.CrlRequest("https://a/b"), PCCS, f"{V4}/crl?uri=https%3A%2F%2Fa%2Fb"),
        (pcs.TcbEvaluationDataNumbersRequest("tdx"), PCS, "/tdx/certification/v4/tcbevaluationdatanumbers"),
        (pcs.FmspcsRequest("E3"), PCS, f"{V4}/fmspcs?platform=E3"),
    ],
)
def test_the_target_of_a_request(request_, api, target):
    built = build_request(request_, api)
    assert (built.method, built.target, built.url) == ("GET", target, None)


def test_intel_serves_the_root_list_at_another_host():
    built = build_request(pcs.RootCaCrlRequest(), PCS)
    assert built.url == "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
    assert build_request(pcs.CrlRequest("https://a/b"), PCS).url == "https://a/b"


def test_a_pck_certificate_is_asked_for_in_little_endian_hexadecimal():
    by_qe_id = pcs.PckCertRequest(b"\x0b" * 16, 0x000D, b"\x00\x01", qe_id=b"\xaa" * 16)
    tcb = f"cpusvn={'0b' * 16}&pcesvn=0d00&pceid=0001"
    assert build_request(by_qe_id, PCCS).target == f"{V4}/pckcert?qeid={'aa' * 16}&{tcb}"
    thim = build_request(by_qe_id, THIM)
    assert thim.target.startswith(f"{V4}/pckcert?qeid={'aa' * 16}&{tcb}&clientid=production_client&api-version=2021")
    assert thim.headers == (("metadata", "true"),)
    by_ppid = pcs.PckCertRequest(b"\x0b" * 16, 0x000D, b"\x00\x01", encrypted_ppid=b"\x01" * 384)
    assert build_request(by_ppid, PCS).target == f"{V4}/pckcert?encrypted_ppid={'01' * 384}&{tcb}"


def test_a_manifest_is_posted():
    built = build_request(pcs.PckCertRequest(bytes(16), 1, bytes(2), platform_manifest=b"\xca\xfe"), PCS)
    assert (built.method, built.path) == ("POST", f"{V4}/pckcert")
    assert json.loads(built.body) == {
        "platformManifest": "cafe",
        "cpusvn": "00" * 16,
        "pcesvn": "0100",
        "pceid": "0000",
    }
    many = build_request(pcs.PckCertsRequest(bytes(2), platform_manifest=b"\xca\xfe"), PCS)
    assert (many.path, json.loads(many.body)) == (f"{V4}/pckcerts", {"platformManifest": "cafe", "pceid": "0000"})
    listed = build_request(pcs.PckCertsRequest(bytes(2), encrypted_ppid=b"\x01" * 384), PCS)
    assert listed.target == f"{V4}/pckcerts?encrypted_ppid={'01' * 384}&pceid=0000"


@pytest.mark.parametrize(
    ("request_", "api"),
    [
        (pcs.TcbInfoRequest("tdx", FMSPC), PCCS_V3),
        (pcs.TcbInfoRequest("sgx", FMSPC, "early"), PCCS_V3),
        (pcs.PckCertRequest(bytes(16), 1, bytes(2), qe_id=b"\x01"), PCS),
        (pcs.PckCertRequest(bytes(16), 1, bytes(2), encrypted_ppid=bytes(384)), PCCS),
        (pcs.PckCertsRequest(bytes(2), encrypted_ppid=bytes(384)), PCCS),
        (pcs.PckCertsRequest(bytes(2)), PCS),
    ],
)
def test_what_a_service_cannot_be_asked_is_not_found(request_, api):
    with pytest.raises(CollateralNotFound):
        build_request(request_, api)
