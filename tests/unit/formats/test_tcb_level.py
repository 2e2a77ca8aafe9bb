"""TCB levels come highest first, each once, whatever order the JSON has."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

import pki_builder as intel
from confcom.errors import FormatError
from confcom.formats.signed_json import decode, prepare
from confcom.formats.tcb_info import (
    ENCLAVE_STATUSES,
    IsvSvnLevelJson,
    LevelV2Json,
    LevelV3Json,
    TcbStatus,
    isv_svn_levels,
    levels_v2,
    levels_v3,
)

prepare(IsvSvnLevelJson, LevelV2Json, LevelV3Json)


def _v3(*levels: dict, tdx: bool = False):
    return levels_v3([decode(intel.compact(level), LevelV3Json, "T") for level in levels], "T", tdx=tdx)


def test_levels_are_sorted_by_components_then_pcesvn() -> None:
    found = _v3(intel.level(svn=1, pce_svn=13), intel.level(svn=2, pce_svn=5), intel.level(svn=2, pce_svn=13))
    assert [(level.sgx_components[0], level.pce_svn) for level in found] == [(2, 13), (2, 5), (1, 13)]


def test_one_tcb_twice_is_malformed_even_with_another_status() -> None:
    with pytest.raises(FormatError, match="twice"):
        _v3(intel.level(), intel.level("OutOfDate"))


def test_a_tdx_level_differs_from_another_by_its_tdx_components_alone() -> None:
    low, high = intel.level("OutOfDate"), intel.level()
    low["tcb"]["tdxtcbcomponents"] = [{"svn": 4}] + [{"svn": 0}] * 15
    high["tcb"]["tdxtcbcomponents"] = [{"svn": 5}] + [{"svn": 0}] * 15
    assert [level.tdx_components[0] for level in _v3(low, high, tdx=True)] == [5, 4]
    with pytest.raises(FormatError, match="twice"):
        _v3(low, high, tdx=False)


def test_a_tdx_level_without_tdx_components_is_malformed() -> None:
    with pytest.raises(FormatError) as caught:
        _v3(intel.level(), tdx=True)
    assert caught.value.field == "tcbLevels[0].tcb.tdxtcbcomponents"


def test_components_keep_what_they_are() -> None:
    (found,) = _v3(intel.level(advisoryIDs=["INTEL-SA-1"]))
    assert (found.components[0].category, found.components[0].type) == ("BIOS", "Early Microcode Update")
    assert found.components[1].type is None
    assert found.advisory_ids == ("INTEL-SA-1",)
    assert found.tcb_date == datetime(2025, 8, 13, tzinfo=UTC)


def test_version_2_spells_the_components_out() -> None:
    tcb = {f"sgxtcbcomp{number:02d}svn": number for number in range(1, 17)} | {"pcesvn": 11}
    level = {"tcb": tcb, "tcbDate": "2025-08-13T00:00:00Z", "tcbStatus": "SWHardeningNeeded"}
    (found,) = levels_v2([decode(intel.compact(level), LevelV2Json, "T")], "T")
    assert found.sgx_components == tuple(range(1, 17))
    assert found.pce_svn == 11
    assert found.tcb_status is TcbStatus.SW_HARDENING_NEEDED
    del tcb["sgxtcbcomp16svn"]
    with pytest.raises(FormatError, match="sgxtcbcomp16svn"):
        decode(intel.compact(level), LevelV2Json, "T")


@pytest.mark.parametrize("count", [15, 17])
def test_a_level_has_sixteen_components(count: int) -> None:
    level = intel.level()
    level["tcb"]["sgxtcbcomponents"] = [{"svn": 0}] * count
    with pytest.raises(FormatError):
        _v3(level)


@pytest.mark.parametrize("status", ["Foo", "uptodate", "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"])
def test_a_status_that_no_level_has_is_malformed(status: str) -> None:
    with pytest.raises(FormatError) as caught:
        _v3(intel.level(status))
    assert caught.value.field.endswith("tcbStatus")


def _svns(*levels: dict):
    found = [decode(intel.compact(level), IsvSvnLevelJson, "T") for level in levels]
    return isv_svn_levels(found, ENCLAVE_STATUSES, "T", "tcbLevels")


def test_isv_svn_levels_are_sorted_and_each_once() -> None:
    assert [level.isv_svn for level in _svns(intel.svn_level(2), intel.svn_level(8), intel.svn_level(5))] == [8, 5, 2]
    with pytest.raises(FormatError, match="twice"):
        _svns(intel.svn_level(8), intel.svn_level(8, "Revoked"))
    with pytest.raises(FormatError, match="empty"):
        _svns()
