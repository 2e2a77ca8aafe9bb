"""TCB levels: matching, convergence and the relaunch advice, cell by cell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from confcom.appraisal.tcb import TcbEvaluation, converge, match_isv_svn, match_platform, relaunch
from confcom.formats.pck_extension import PckTcb
from confcom.formats.tcb_info import IsvSvnLevel, TcbInfo, TcbLevel, TcbStatus

UP, SW, CONF, CONF_SW = (
    TcbStatus.UP_TO_DATE,
    TcbStatus.SW_HARDENING_NEEDED,
    TcbStatus.CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
)
OLD, OLD_CONF, REVOKED = TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED, TcbStatus.REVOKED


@pytest.mark.parametrize(
    ("platform", "with_old_qe"),
    [(UP, OLD), (SW, OLD), (CONF, OLD_CONF), (CONF_SW, OLD_CONF), (OLD, OLD), (OLD_CONF, OLD_CONF)],
)
def test_convergence_follows_intels_table(platform: TcbStatus, with_old_qe: TcbStatus) -> None:
    assert converge(platform, UP) is platform
    assert converge(platform, OLD) is with_old_qe
    assert converge(platform, UP, OLD) is with_old_qe
    assert converge(platform, REVOKED) is REVOKED
    assert converge(REVOKED, platform) is REVOKED


DAY = datetime(2026, 1, 1, tzinfo=UTC)


def level(comps: list[int], pce_svn: int, status: TcbStatus, tdx: list[int] | None = None) -> TcbLevel:
    return TcbLevel(
        sgx_components=tuple(comps),
        pce_svn=pce_svn,
        tdx_components=tuple(tdx) if tdx is not None else None,
        tcb_date=DAY,
        tcb_status=status,
        advisory_ids=(),
        components=(),
    )


def info(*levels: TcbLevel) -> TcbInfo:
    return TcbInfo(
        id="SGX",
        version=3,
        issue_date=DAY,
        next_update=DAY,
        fmspc=bytes(6),
        pce_id=bytes(2),
        tcb_type=0,
        tcb_evaluation_data_number=17,
        tdx_module=None,
        tdx_module_identities=(),
        tcb_levels=levels,
    )


HIGH = level([5] * 16, 13, UP)
LOW = level([3] * 16, 10, OLD)


def pck(comps: list[int], pce_svn: int) -> PckTcb:
    return PckTcb(sgx_components=tuple(comps), pce_svn=pce_svn, cpu_svn=bytes(16))


def test_a_platform_is_at_the_first_level_that_it_reaches_in_every_component() -> None:
    levels = info(HIGH, LOW)
    assert match_platform(pck([5] * 16, 13), None, levels) is HIGH
    assert match_platform(pck([9] * 16, 99), None, levels) is HIGH
    for index in range(16):
        comps = [5] * 16
        comps[index] = 4
        assert match_platform(pck(comps, 13), None, levels) is LOW, f"component {index + 1}"
    assert match_platform(pck([5] * 16, 12), None, levels) is LOW


def test_a_platform_below_every_level_has_none() -> None:
    assert match_platform(pck([2] * 16, 13), None, info(HIGH, LOW)) is None
    assert match_platform(pck([5] * 16, 9), None, info(HIGH, LOW)) is None


def test_a_td_is_held_to_its_own_components_except_those_of_a_module_that_has_an_identity() -> None:
    levels = info(level([1] * 16, 1, UP, [4, 4, *[7] * 14]), level([1] * 16, 1, OLD, [0] * 16))
    platform = pck([1] * 16, 1)
    # Module version 0: all sixteen bytes count.
    assert match_platform(platform, bytes([4, 0, *[7] * 14]), levels) is levels.tcb_levels[1]
    assert match_platform(platform, bytes([3, 1, *[7] * 14]), levels) is levels.tcb_levels[0]
    for index in range(2, 16):
        svns = [9, 1, *[7] * 14]
        svns[index] = 6
        assert match_platform(platform, bytes(svns), levels) is levels.tcb_levels[1], f"component {index + 1}"


def test_an_enclave_is_at_the_highest_level_that_it_reaches() -> None:
    levels = [IsvSvnLevel(8, DAY, UP, ()), IsvSvnLevel(6, DAY, OLD, ()), IsvSvnLevel(1, DAY, REVOKED, ())]
    assert match_isv_svn(9, levels) is levels[0]
    assert match_isv_svn(8, levels) is levels[0]
    assert match_isv_svn(7, levels) is levels[1]
    assert match_isv_svn(1, levels) is levels[2]
    assert match_isv_svn(0, levels) is None


def evaluation(status: TcbStatus | None) -> TcbEvaluation:
    return TcbEvaluation(status, DAY, (), None, None)


@pytest.mark.parametrize(
    ("launch", "current", "expected"),
    [
        (OLD, UP, TcbStatus.TD_RELAUNCH_ADVISED),
        (OLD, SW, TcbStatus.TD_RELAUNCH_ADVISED),
        (OLD, CONF, TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED),
        (OLD_CONF, UP, TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED),
        (OLD_CONF, CONF_SW, TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED),
        (OLD, OLD, OLD),
        (OLD_CONF, OLD_CONF, OLD_CONF),
        (OLD, REVOKED, REVOKED),
        (UP, REVOKED, REVOKED),
        (None, REVOKED, REVOKED),
        (UP, OLD, UP),
        (REVOKED, UP, REVOKED),
        (OLD, None, None),
        (UP, None, None),
        (None, UP, None),
    ],
)
def test_a_td_that_outlived_a_module_update_is_advised_to_relaunch(
    launch: TcbStatus | None, current: TcbStatus | None, expected: TcbStatus | None
) -> None:
    assert relaunch(evaluation(launch), evaluation(current)).status is expected


def test_both_modules_count_for_advisories_and_the_date_and_stay_apart() -> None:
    launch = structs.replace(evaluation(OLD), advisory_ids=("INTEL-SA-00001", "INTEL-SA-00002"))
    current = structs.replace(evaluation(UP), advisory_ids=("INTEL-SA-00002", "INTEL-SA-00003"))
    current = structs.replace(current, tcb_date=DAY - timedelta(days=9))
    both = relaunch(launch, current)
    assert both.advisory_ids == ("INTEL-SA-00001", "INTEL-SA-00002", "INTEL-SA-00003")
    assert both.tcb_date == DAY - timedelta(days=9)
    assert (both.launch, both.current) == (launch, current)
