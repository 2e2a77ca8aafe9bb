from __future__ import annotations

import json
from datetime import timedelta

import pytest

from confcom.errors import ConfigError
from confcom.formats.tcb_info import SignedEnclaveIdentity, SignedTcbInfo


def test_tcb_info_is_compact_json_that_our_own_reader_understands(world, now):
    document = world.publish().tcb_info
    parsed = json.loads(document)
    assert json.dumps(parsed, separators=(",", ":")).encode() == document
    assert list(parsed) == ["tcbInfo", "signature"]
    info = SignedTcbInfo.parse(document).tcb_info()
    assert (info.id, info.version, info.fmspc, info.pce_id, info.tcb_type) == ("SGX", 3, b"\0\0SIM\0", b"\0\0", 0)
    assert info.issue_date == now - timedelta(days=1)
    assert info.next_update == info.issue_date + timedelta(days=30)
    assert [level.tcb_status for level in info.tcb_levels] == ["UpToDate", "OutOfDate"]
    assert info.tcb_levels[0].sgx_components == world.machine.tcb.sgx_components
    assert info.tcb_levels[0].pce_svn == 13
    assert info.tcb_levels[1].advisory_ids == ("SIMULATED-SA-00001",)


def test_tcb_info_version_2_has_its_own_fields(world):
    world.tcb_info.version = 2
    inner = json.loads(world.publish().tcb_info)["tcbInfo"]
    assert "id" not in inner
    assert inner["version"] == 2
    assert inner["tcbLevels"][0]["tcb"]["sgxtcbcomp01svn"] == 11
    assert inner["tcbLevels"][0]["tcb"]["sgxtcbcomp16svn"] == 0
    info = SignedTcbInfo.parse(world.publish().tcb_info).tcb_info()
    assert info.tcb_levels[0].sgx_components == world.machine.tcb.sgx_components


def test_there_is_no_other_version(world):
    world.tcb_info.version = 4
    with pytest.raises(ConfigError, match="version 4"):
        world.publish()


def test_the_qe_identity_describes_intels_qe(world):
    identity = SignedEnclaveIdentity.parse(world.publish().qe_identity).enclave_identity()
    assert identity.id == "QE"
    assert identity.mr_signer.hex() == "8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"
    assert identity.isv_prod_id == 1
    assert [level.isv_svn for level in identity.tcb_levels] == [8, 6]


def test_a_change_shows_in_the_next_document(world):
    world.tcb_info.levels[0].status = "SWHardeningNeeded"
    world.tcb_info.levels[0].advisory_ids = ("SIMULATED-SA-7",)
    world.tcb_info.tcb_evaluation_data_number = 40
    world.authority.qe_identity.levels[0].status = "Revoked"
    info = json.loads(world.publish().tcb_info)["tcbInfo"]
    assert info["tcbLevels"][0]["tcbStatus"] == "SWHardeningNeeded"
    assert info["tcbLevels"][0]["advisoryIDs"] == ["SIMULATED-SA-7"]
    assert info["tcbEvaluationDataNumber"] == 40
    assert json.loads(world.publish().qe_identity)["enclaveIdentity"]["tcbLevels"][0]["tcbStatus"] == "Revoked"
