from __future__ import annotations

import pytest

from confcom.collateral.interface import CollateralSource
from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.simulator.machine import FMSPC


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


def test_it_has_nothing_for_tdx_or_a_strange_fmspc(source):
    with pytest.raises(CollateralNotFound):
        source.fetch(FMSPC, "platform", "tdx")
    with pytest.raises(CollateralNotFound):
        source.fetch(b"\0" * 6, "platform", "sgx")


def test_an_outage_is_unavailability(source):
    source.reachable = False
    with pytest.raises(CollateralUnavailable):
        source.fetch(FMSPC, "platform", "sgx")
