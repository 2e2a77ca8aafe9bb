"""Clients that others wrote, and our own, get from our collateral service what verifies a quote of its platform.

PyPI's dcap-qvl is Rust with an HTTP client of its own: it reads header names, encodings and statuses as it likes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dcap_qvl
import pytest

from confcom.appraisal.collateral import verify_collateral
from confcom.appraisal.quote import verify_quote
from confcom.collateral.documents import DocumentKey
from confcom.collateral.pcs_client import HttpLimits, PcsClient
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.protocols.pcs import Dialect, PckCertRequest
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.machine import FMSPC, MachineTcb
from confcom.simulator.world import SimulatedWorld
from running_collateral_service import NOW, SEED, Clock, RecordedUpstream, RunningService, running_service

LIMITS = HttpLimits(timeout=5, deadline=10, retries=0)


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(SEED, now=NOW)


@pytest.fixture
def upstream(world: SimulatedWorld) -> RecordedUpstream:
    return RecordedUpstream(world, Clock(NOW))


@pytest.fixture
def service(tmp_path: Path, world: SimulatedWorld, upstream: RecordedUpstream) -> Iterator[RunningService]:
    with running_service(tmp_path / "s.sqlite", upstream, world.trust_roots, Clock(NOW)) as service:
        yield service


@pytest.fixture
def quote(world: SimulatedWorld) -> bytes:
    enclave = world.machine.launch(EnclaveDeclaration.from_names("interop"))
    report = enclave.create_report(world.platform.init_quote().target_info, b"interop".ljust(64, b"\0"))
    return world.platform.quote(report).quote


def verify(quote: bytes, collateral: dcap_qvl.QuoteCollateralV3, world: SimulatedWorld) -> dcap_qvl.VerifiedReport:
    return dcap_qvl.verify_with_root_ca(quote, collateral, world.root_der(), int(NOW.timestamp()))


# --- dcap-qvl ---------------------------------------------------------------------------------------------------------


async def test_dcap_qvl_verifies_a_quote_with_what_it_fetches_here(service, world, quote) -> None:
    collateral = await dcap_qvl.get_collateral(service.url, quote)

    assert verify(quote, collateral, world).status == "UpToDate"


async def test_dcap_qvl_fetches_the_very_bytes_that_the_authority_signed(service, world, quote) -> None:
    collateral = json.loads((await dcap_qvl.get_collateral(service.url, quote)).to_json())
    published = world.authority.collateral_for(world.machine)

    assert f'{{"tcbInfo":{collateral["tcb_info"]},' in published.tcb_info.decode()
    assert collateral["tcb_info_issuer_chain"].encode() == published.tcb_info_issuer_chain
    assert collateral["pck_crl_issuer_chain"].encode() == published.pck_crl_issuer_chain


async def test_dcap_qvl_sees_a_tcb_recovery_and_a_revocation(tmp_path, world, quote) -> None:
    world.authority.raise_tcb(MachineTcb((12,) * 16, 14), advisory_ids=["SIMULATED-SA-9"])
    upstream = RecordedUpstream(world, Clock(NOW))
    with running_service(tmp_path / "old.sqlite", upstream, world.trust_roots, Clock(NOW)) as service:
        behind = verify(quote, await dcap_qvl.get_collateral(service.url, quote), world)
    world.authority.revoke_pck(world.machine)
    with running_service(tmp_path / "revoked.sqlite", upstream, world.trust_roots, Clock(NOW)) as service:
        collateral = await dcap_qvl.get_collateral(service.url, quote)
        with pytest.raises(ValueError, match=r"(?i)revoked"):
            verify(quote, collateral, world)

    assert behind.status == "OutOfDate"
    assert "SIMULATED-SA-9" in behind.advisory_ids


async def test_dcap_qvl_is_served_while_upstream_is_down(service, upstream, world, quote) -> None:
    await dcap_qvl.get_collateral(service.url, quote)
    upstream.down = True

    assert verify(quote, await dcap_qvl.get_collateral(service.url, quote), world).status == "UpToDate"


async def test_dcap_qvl_reports_what_is_missing(tmp_path, world, quote) -> None:
    service = running_service(tmp_path / "s.sqlite", None, world.trust_roots, Clock(NOW), mode="offline")
    with service as empty, pytest.raises((RuntimeError, ValueError), match=r"404|(?i:fetch)"):
        await dcap_qvl.get_collateral(empty.url, quote)


# --- our own ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4])
def test_our_client_verifies_a_quote_with_what_it_fetches_here(service, world, quote, version) -> None:
    client = PcsClient(service.url, dialect=Dialect.PCCS, api_version=version, limits=LIMITS)
    collateral = client.fetch(FMSPC, "platform", "sgx")

    assert verify_collateral(collateral, roots=world.trust_roots).simulated
    assert verify_quote(quote, collateral, roots=world.trust_roots, now=NOW) is not None


def test_our_client_gets_pck_certificates_here(service, world) -> None:
    machine, chain = world.machine, world.authority.pck_chain(world.machine)
    client = PcsClient(service.url, dialect=Dialect.PCCS, limits=LIMITS)
    request = PckCertRequest(
        cpu_svn=machine.tcb.cpu_svn,
        pce_svn=machine.tcb.pce_svn,
        pce_id=bytes(2),
        qe_id=QuotingEnclave(machine, chain).qe_id,
    )
    answer = client.fetch_pck_certificate(request)

    assert answer.certificate + answer.issuer_chain == chain
    assert (answer.fmspc, answer.ca) == (FMSPC, "platform")


def test_our_client_speaks_azures_dialect_here_too(service, world) -> None:
    client = PcsClient(service.url, dialect=Dialect.THIM, limits=LIMITS)

    assert client.fetch_document(DocumentKey.tcb_info("sgx", FMSPC)).body.startswith(b'{"tcbInfo":')
    assert client.fetch_document(DocumentKey.root_ca_crl()).body.startswith(b"\x30")


def test_our_client_tells_what_is_missing_from_what_may_come(service, upstream) -> None:
    client = PcsClient(service.url, dialect=Dialect.PCCS, limits=LIMITS)
    with pytest.raises(CollateralNotFound, match="no TCB info for FMSPC ffffffffffff"):
        client.fetch_document(DocumentKey.tcb_info("sgx", b"\xff" * 6))
    upstream.down = True
    with pytest.raises(CollateralUnavailable, match="502"):
        client.fetch_document(DocumentKey.qe_identity("sgx"))


def test_a_service_can_be_the_upstream_of_another(tmp_path, service, world, quote) -> None:
    upstream = PcsClient(service.url, dialect=Dialect.PCCS, limits=LIMITS)
    with running_service(tmp_path / "second.sqlite", upstream, world.trust_roots, Clock(NOW)) as second:
        collateral = PcsClient(second.url, dialect=Dialect.PCCS, limits=LIMITS).fetch(FMSPC, "platform", "sgx")

    assert verify_quote(quote, collateral, roots=world.trust_roots, now=NOW) is not None
    with CollateralStore(tmp_path / "second.sqlite", roots=world.trust_roots, create=False) as kept:
        assert len(kept.document_keys()) >= 4
