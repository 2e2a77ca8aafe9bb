from __future__ import annotations

import json

import pytest

from confcom.appraisal.collateral import verify_collateral
from confcom.collateral.documents import CollateralSource, DocumentKey, DocumentKind, verify_document
from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.simulator.machine import FMSPC, MachineTcb


@pytest.fixture
def source(world) -> CollateralSource:
    return world.pcs


def test_it_serves_what_the_authority_says_now(world, source):
    assert source.fetch(FMSPC, "platform", "sgx") == world.publish()
    before = source.fetch(FMSPC, "platform", "sgx")
    world.authority.set_status("OutOfDate", ["SIMULATED-SA-9"])
    assert source.fetch(FMSPC, "platform", "sgx").tcb_info != before.tcb_info


def test_each_ca_has_its_own_list(source):
    platform, processor = (source.fetch(FMSPC, ca, "sgx") for ca in ("platform", "processor"))
    assert platform.pck_crl != processor.pck_crl
    assert platform.tcb_info == processor.tcb_info


def test_its_tdx_collateral_verifies(world, source):
    verified = verify_collateral(source.fetch(FMSPC, "platform", "tdx"), roots=world.trust_roots)
    assert (verified.tcb_info.id, verified.qe_identity.id) == ("TDX", "TD_QE")
    assert [identity.id for identity in verified.tcb_info.tdx_module_identities] == ["TDX_03", "TDX_01"]
    assert verified.tcb_info.tcb_levels[0].tdx_components[:3] == (5, 0, 3)


@pytest.mark.parametrize(
    "key",
    [
        DocumentKey(DocumentKind.QVE_IDENTITY, update="standard"),
        DocumentKey(DocumentKind.QVE_IDENTITY, update=17),
        DocumentKey(DocumentKind.TCB_EVALUATION_DATA_NUMBERS, tee="sgx"),
        DocumentKey(DocumentKind.TCB_EVALUATION_DATA_NUMBERS, tee="tdx"),
        DocumentKey.tcb_info("tdx", FMSPC, "early"),
        DocumentKey.qe_identity("tdx"),
    ],
    ids=str,
)
def test_every_document_is_signed(world, source, key):
    assert verify_document(source.fetch_document(key), roots=world.trust_roots).facts.number == 17


def test_a_tcb_recovery_is_one_of_every_document(world, source):
    world.authority.raise_tcb(MachineTcb((12,) * 16, 14), advisory_ids=["SIMULATED-SA-9"])
    tdx = source.fetch(FMSPC, "platform", "tdx")
    numbers = source.fetch_document(DocumentKey(DocumentKind.TCB_EVALUATION_DATA_NUMBERS, tee="tdx")).body
    assert json.loads(tdx.tcb_info)["tcbInfo"]["tcbEvaluationDataNumber"] == 18
    assert json.loads(tdx.qe_identity)["enclaveIdentity"]["tcbEvaluationDataNumber"] == 18
    assert json.loads(numbers)["tcbEvaluationDataNumbers"]["tcbEvalNumbers"][0]["tcbEvaluationDataNumber"] == 18


def test_it_has_nothing_for_a_strange_fmspc_or_set(source):
    with pytest.raises(CollateralNotFound):
        source.fetch(b"\0" * 6, "platform", "sgx")
    with pytest.raises(CollateralNotFound):
        source.fetch(FMSPC, "platform", "tdx", update=16)


def test_an_outage_is_unavailability(source):
    source.reachable = False
    with pytest.raises(CollateralUnavailable):
        source.fetch(FMSPC, "platform", "sgx")
    with pytest.raises(CollateralUnavailable):
        source.fetch_document(DocumentKey(DocumentKind.TCB_EVALUATION_DATA_NUMBERS, tee="sgx"))
