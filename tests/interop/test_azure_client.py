"""Azure's client library (az-dcap-client) gets from our collateral service what it gets from Azure.

Its requests are replayed as it sends them (version 1.13.1, recorded). Where CONFCOM_AZURE_CLIENT names its
libdcap_quoteprov.so, the library itself asks.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from confcom.appraisal.collateral import Collateral, verify_collateral
from confcom.pki.certificate import Crl
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.machine import PckCa
from confcom.simulator.world import SimulatedWorld
from running_collateral_service import FMSPC, NOW, SEED, Clock, RecordedUpstream, RunningService, running_service

LIBRARY = os.environ.get("CONFCOM_AZURE_CLIENT")
PEM_CRLS = "clientid=production_client&api-version=2020-02-12-preview"
JSON = "clientid=production_client&api-version=2018-10-01-preview"
PLATFORM_CRL = (
    "https%253a%252f%252fapi.trustedservices.intel.com%252fsgx%252fcertification%252fv3%252fpckcrl"
    "%253fca%253dplatform%2526encoding%253dpem"
)
ROOT_CRL = "https%253a%252f%252fcertificates.trustedservices.intel.com%252fintelsgxrootca.crl"
PROCESSOR_CRL = "https%253a%252f%252fcertificates.trustedservices.intel.com%252fintelsgxpckprocessor.crl"


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(SEED, now=NOW)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, world: SimulatedWorld) -> Iterator[RunningService]:
    upstream = RecordedUpstream(world, Clock(NOW))
    store = tmp_path_factory.mktemp("azure") / "s.sqlite"
    with running_service(store, upstream, world.trust_roots, Clock(NOW)) as running:
        yield running


def qe_id(world: SimulatedWorld) -> bytes:
    return QuotingEnclave(world.machine, world.authority.pck_chain(world.machine)).qe_id


def send(service: RunningService, target: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    """The library's bytes on the wire; header names of the answer in lower case, as it compares them."""
    host, port = service.address
    path = target if target.startswith("/") else f"/sgx/certification/{target}"
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "Accept: */*", *headers]
    with socket.create_connection((host, port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *found = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in found)
    return int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, body


@pytest.mark.parametrize(
    "base", ["/sgx/certification/v2", "/sgx/certification/v4", "/metadata/THIM/sgx/certification/v4"]
)
@pytest.mark.parametrize("header", ["metadata:true", "Content-Type:application/json"])
def test_a_pck_certificate_is_read_from_json(service, world, base, header) -> None:
    tcb = world.machine.tcb
    target = (
        f"{base}/pckcert?qeid={qe_id(world).hex()}&cpusvn={tcb.cpu_svn.hex()}&pcesvn=0d00&pceid=0000"
        "&clientid=production_client&api-version=2021-07-22-preview"
    )
    status, _, body = send(service, target, header)
    answer = json.loads(body)

    assert status == 200
    chain = answer["pckCert"] + unquote(answer["sgx-Pck-Certificate-Issuer-Chain"])
    assert chain.encode() == world.authority.pck_chain(world.machine)
    assert answer["sgx-Tcbm"] == tcb.cpu_svn.hex() + "0d00"
    assert 0.8 * 86400 <= int(answer["cacheMaxAge"]) <= 86400


@pytest.mark.parametrize("version", ["v2", "v3", "v4"])
def test_every_document_of_a_verification_has_its_chain_and_an_age(service, world, version) -> None:
    expected = world.authority.collateral_for(world.machine)
    parts: dict[str, Any] = {}
    for name, target, header in (
        ("pck_crl", f"{version}/pckcrl?uri={PLATFORM_CRL}&{PEM_CRLS}", "sgx-pck-crl-issuer-chain"),
        ("root_ca_crl", f"{version}/pckcrl?uri={ROOT_CRL}&{PEM_CRLS}", "sgx-pck-crl-issuer-chain"),
        ("tcb_info", f"{version}/tcb?fmspc={FMSPC}&{JSON}", "sgx-tcb-info-issuer-chain"),
        ("qe_identity", f"{version}/qe/identity?{JSON}", "sgx-enclave-identity-issuer-chain"),
    ):
        status, headers, body = send(service, target)
        assert (status, lives_a_day(headers)) == (200, True)
        parts |= {name: body, f"{name}_issuer_chain": unquote(headers[header]).encode()}

    assert parts["pck_crl"].startswith(b"-----BEGIN X509 CRL-----\n")
    assert parts.pop("root_ca_crl_issuer_chain") == world.root_pem()
    assert verify_collateral(Collateral(**parts, source="azure"), roots=world.trust_roots).simulated
    assert (parts["tcb_info"], parts["qe_identity"]) == (expected.tcb_info, expected.qe_identity)


def test_the_processor_cas_list_and_the_qve_identity_are_there(service, world) -> None:
    status, _, body = send(service, f"v4/pckcrl?uri={PROCESSOR_CRL}&{PEM_CRLS}")
    assert status == 200
    assert bytes(Crl.parse(body)) == world.authority.collateral(world.machine.fmspc, PckCa.PROCESSOR).pck_crl
    status, headers, body = send(service, f"v4/qve/identity?{JSON}")
    assert (status, json.loads(body)["enclaveIdentity"]["id"]) == (200, "QVE")
    assert "sgx-enclave-identity-issuer-chain" in headers


def test_revocation_information_comes_as_der(service) -> None:
    uri = "https%3A%2F%2Fapi.trustedservices.intel.com%2Fsgx%2Fcertification%2Fv1%2Fpckcrl%3Fca%3Dprocessor"
    status, _, body = send(service, f"v4/pckcrl?uri={uri}&{JSON}", "Content-Type:application/json")
    assert (status, body[:1]) == (200, b"\x30")


def lives_a_day(headers: dict[str, str]) -> bool:
    """Less some by chance."""
    name, _, age = headers["cache-control"].partition("=")
    return name == "max-age" and 0.8 * 86400 <= int(age) <= 86400


@pytest.mark.parametrize("path", ["pckcrl?ca=platform&clientid=production_client", "rootcacrl?clientid=x"])
def test_tdx_lists_have_a_chain_and_an_age(service, path) -> None:
    status, headers, _ = send(service, f"v4/{path}")
    assert (status, lives_a_day(headers)) == (200, True)
    assert "sgx-pck-crl-issuer-chain" in headers


@pytest.mark.skipif(LIBRARY is None, reason="set CONFCOM_AZURE_CLIENT to a libdcap_quoteprov.so of az-dcap-client")
@pytest.mark.parametrize("version", ["v2", "v3", "v4"])
def test_the_library_itself_is_served(service, world, tmp_path: Path, version) -> None:
    base, tcb = f"{service.url}/sgx/certification", world.machine.tcb
    names = ("AZDCAP_BASE_CERT_URL", "AZDCAP_PRIMARY_BASE_CERT_URL", "AZDCAP_SECONDARY_BASE_CERT_URL")
    settings = dict.fromkeys(names, base) | {"AZDCAP_COLLATERAL_VERSION": version, "AZDCAP_CACHE": str(tmp_path)}
    point = "https://api.trustedservices.intel.com/sgx/certification/v1/pckcrl?ca=processor"
    program = str(Path(__file__).with_name("azure_client.py"))
    values = [str(LIBRARY), qe_id(world).hex(), tcb.cpu_svn.hex(), str(tcb.pce_svn), FMSPC, point]
    ran = subprocess.run(
        [sys.executable, program, *values], env=os.environ | settings, capture_output=True, timeout=120, check=True
    )
    found = json.loads(ran.stdout[ran.stdout.index(b'{"certificate"') :])

    assert {name: answer["code"] for name, answer in found.items()} == dict.fromkeys(found, 0)
    assert found["certificate"]["chain"].encode() == world.authority.pck_chain(world.machine)
    assert found["certificate"]["cpu_svn"] == tcb.cpu_svn.hex()
    assert found["collateral"]["tcb_info"].encode() == world.authority.collateral_for(world.machine).tcb_info
    assert found["collateral"]["root_crl"].startswith("-----BEGIN X509 CRL-----")
    assert found["revocation"]["crl"].startswith("30")
    assert '"QVE"' in found["qve"]["body"]
