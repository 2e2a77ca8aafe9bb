"""Policies: each refuses what it names and nothing else; the defaults are safe."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256

import pytest

from confcom.appraisal.appraise import appraise
from confcom.appraisal.policy import (
    AcceptTcb,
    AllOf,
    AnyOf,
    HardwareOnly,
    HeldData,
    IsvProdId,
    MinIsvSvn,
    MrEnclave,
    MrSigner,
    NoDebug,
    ReportData,
    safe_defaults,
)
from confcom.appraisal.policy_file import parse_policy
from confcom.appraisal.verdict import Verdict
from confcom.errors import ConfigError, PolicyError, StaleCollateralError, TcbNotSupportedError
from confcom.formats.tcb_info import TcbStatus
from confcom.simulator.declaration import measure


@pytest.fixture
def verify(world, make_quote, verifier, now):
    def run(report_data: bytes = bytes(64), *, days: int = 0, **declared: object):
        return verifier.verify(make_quote(report_data, **declared), world.publish(), now=now + timedelta(days=days))

    return run


def failed(findings) -> list[str]:
    return [finding.id for finding in findings if not finding.ok]


@pytest.mark.parametrize(
    ("policy", "identifier"),
    [
        (MrEnclave((bytes(32),)), "mr-enclave"),
        (MrSigner((bytes(32),)), "mr-signer"),
        (IsvProdId(7), "isv-prod-id"),
        (MinIsvSvn(9), "min-isv-svn"),
        (ReportData(b"\x01"), "report-data"),
        (HeldData(b"something else"), "held-data"),
        (HardwareOnly(), "hardware"),
        (AcceptTcb([TcbStatus.OUT_OF_DATE]), "tcb-status"),
    ],
)
def test_a_policy_that_does_not_hold_says_what_it_wanted_and_what_to_do(verify, policy, identifier: str) -> None:
    (finding,) = policy.check(verify())
    assert finding.id == identifier
    assert not finding.ok
    assert finding.expected != finding.found
    assert finding.advice


def test_a_policy_that_holds_says_so(verify) -> None:
    body = verify().quote.body
    held = b"a public key"
    verified = verify(sha256(held).digest() + bytes(32), isv_prod_id=3, isv_svn=5)
    body = verified.quote.body
    policy = AllOf(
        MrEnclave((bytes(32), body.mr_enclave)),
        MrSigner((body.mr_signer,)),
        IsvProdId(3),
        MinIsvSvn(5),
        ReportData(sha256(held).digest()),
        HeldData(held),
        NoDebug(),
        AcceptTcb([TcbStatus.UP_TO_DATE]),
    )
    assert failed(policy.check(verified)) == []
    assert appraise(verified, policy).verdict is Verdict.ACCEPTED


def test_the_defaults_refuse_simulation_debug_and_anything_but_up_to_date(world, verify) -> None:
    assert failed(safe_defaults().check(verify())) == ["hardware"]
    assert failed(safe_defaults(accept_simulated=True).check(verify(debug=True))) == ["no-debug"]
    world.authority.set_status("SWHardeningNeeded", ["INTEL-SA-00334"])
    (finding,) = [item for item in safe_defaults(accept_simulated=True).check(verify()) if not item.ok]
    assert finding.id == "tcb-status"
    assert "INTEL-SA-00334" in finding.found


@pytest.mark.parametrize("make", [AllOf, AnyOf, lambda: AcceptTcb([]), lambda: parse_policy(b"")])
def test_an_empty_policy_is_an_error(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_an_empty_list_of_identities_accepts_nobody(verify) -> None:
    with pytest.raises(ConfigError):
        MrEnclave(()).check(verify())


def test_revoked_can_never_be_accepted(world, verify) -> None:
    with pytest.raises(ConfigError):
        AcceptTcb([TcbStatus.UP_TO_DATE, TcbStatus.REVOKED])
    world.authority.set_status("Revoked")
    every = AcceptTcb(status for status in TcbStatus if status is not TcbStatus.REVOKED)
    appraisal = appraise(verify(), every)
    assert appraisal.verdict is Verdict.REFUSED
    assert appraisal.verified.tcb_status is TcbStatus.REVOKED


def test_any_of_needs_one_and_shows_all_when_none_holds(verify) -> None:
    body = verify().quote.body
    assert failed(AnyOf(MinIsvSvn(99), MrSigner((body.mr_signer,))).check(verify())) == []
    assert failed(AnyOf(MinIsvSvn(99), IsvProdId(9)).check(verify())) == ["min-isv-svn", "isv-prod-id"]


def test_stale_collateral_leaves_it_undecided_even_when_all_else_holds(verify) -> None:
    appraisal = appraise(verify(days=90), safe_defaults(accept_simulated=True))
    assert appraisal.verdict is Verdict.UNDECIDED
    with pytest.raises(StaleCollateralError, match="expired at"):
        appraisal.require()


def test_require_raises_what_was_found(verify) -> None:
    with pytest.raises(PolicyError, match="mr-signer"):
        appraise(verify(), AllOf(MrSigner((bytes(32),)))).require()


def test_a_platform_below_every_level_is_refused_with_its_own_error(world, verify) -> None:
    del world.tcb_info.levels[1:]
    top = world.tcb_info.levels[0].tcb
    world.tcb_info.levels[0].tcb = top.with_component(1, top.sgx_components[0] + 1)
    appraisal = appraise(verify(), safe_defaults(accept_simulated=True))
    assert appraisal.verdict is Verdict.REFUSED
    assert appraisal.verified.tcb_status is None
    with pytest.raises(TcbNotSupportedError):
        appraisal.require()


def test_a_policy_file_becomes_policies(verify) -> None:
    signer = measure("vendor").hex()
    text = f'mr_signer = ["{signer}"]\nisv_prod_id = 1\nmin_isv_svn = 1\naccept_tcb = ["UpToDate"]\n'
    policy = parse_policy(text.encode()).policy(accept_simulated=True)
    found = failed(policy.check(verify()))
    assert found == [] or found == ["mr-signer"]
    assert failed(policy.check(verify(isv_prod_id=2)))[-1] == "isv-prod-id"


@pytest.mark.parametrize(
    "text",
    [
        "mr_sgner = []",
        "min_isv_svn = 'one'",
        "accept_tcb = ['Fine']",
        "= 1",
        "\xff",
        "isv_prod_id = [",
        "mr_signer = ['ab']",
    ],
)
def test_a_wrong_policy_file_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_policy(text.encode("latin-1")).policy()
