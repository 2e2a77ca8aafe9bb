"""Policies: each refuses what it names and nothing else; the defaults are safe."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from hashlib import sha256

import pytest

from confcom.appraisal.findings import Verdict
from confcom.appraisal.policy import (
    AcceptAdvisories,
    AcceptTcb,
    AllOf,
    AnyOf,
    HardwareOnly,
    HeldData,
    IsvProdId,
    MinIsvSvn,
    MinTcbEvaluation,
    MrConfigId,
    MrEnclave,
    MrOwner,
    MrOwnerConfig,
    MrSeam,
    MrSigner,
    MrSignerSeam,
    MrTd,
    ReportData,
    Rtmr0,
    Rtmr1,
    Rtmr2,
    Rtmr3,
    TdAttributes,
    Xfam,
    safe_defaults,
)
from confcom.appraisal.policy_file import parse_policy
from confcom.appraisal.result import appraise
from confcom.errors import ConfigError, PolicyError, StaleCollateralError, TcbNotSupportedError
from confcom.formats.tcb_info import TcbStatus
from confcom.simulator.declaration import measure
from made_quotes import poke, quote_v4, quote_v5


@pytest.fixture
def verify(world, make_quote, verifier, now):
    def run(report_data: bytes = bytes(64), *, days: int = 0, **declared: object):
        at = now + timedelta(days=days)
        return verifier.verify(make_quote(report_data, **declared), world.publish(), now=at, any_tcb=True)

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
        safe_defaults(accept_simulated=True),
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


@pytest.mark.parametrize(
    "make",
    [
        AllOf,
        AnyOf,
        lambda: AcceptTcb([]),
        lambda: MrEnclave([]),
        lambda: MrTd(()),
        lambda: TdAttributes(bytes(8), mask=bytes(8)),
        lambda: parse_policy(b""),
        lambda: parse_policy(b"mr_signer = []"),
        lambda: parse_policy(b"accept_tcb = []").policy(),
        lambda: parse_policy(b"mr_signer:", name="p.yaml"),
        lambda: parse_policy(b"isv_prod_id:", name="p.yaml"),
        lambda: parse_policy(b"accept_advisories:", name="p.yaml"),
        lambda: parse_policy(b'{"min_isv_svn": null}', name="p.json"),
    ],
)
def test_an_empty_policy_is_an_error(make) -> None:
    with pytest.raises(ConfigError):
        make()


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
    with pytest.raises(StaleCollateralError, match="expired: TCB info at"):
        appraisal.require()


def test_what_expired_in_the_quote_is_told_from_what_expired_of_the_collateral(verify) -> None:
    appraisal = appraise(verify(days=20_000), safe_defaults(accept_simulated=True))
    collateral, own = [check for check in appraisal.findings if check.id == "collateral-fresh"]
    assert "TCB info at" in collateral.found
    assert "collateral fetch" in collateral.advice
    assert "PCK Certificate at" in own.found
    assert "TCB" not in own.found
    assert "PCK certificate" in own.advice
    assert "collateral" not in own.advice


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


# TDs.

TD_FIELDS = [
    # (policy, offset in the body, key of the policy file): dcap.md, section 1.3
    (MrSeam, 16, "mr_seam"),
    (MrSignerSeam, 64, "mr_signer_seam"),
    (MrTd, 136, "mr_td"),
    (MrConfigId, 184, "mr_config_id"),
    (MrOwner, 232, "mr_owner"),
    (MrOwnerConfig, 280, "mr_owner_config"),
    (Rtmr0, 328, "rtmr0"),
    (Rtmr1, 376, "rtmr1"),
    (Rtmr2, 424, "rtmr2"),
    (Rtmr3, 472, "rtmr3"),
]


@pytest.mark.parametrize(("policy", "offset", "key"), TD_FIELDS, ids=lambda value: str(value))
@pytest.mark.parametrize(
    ("quote", "body"), [(quote_v4(0x81), 48), (quote_v5(2), 54), (quote_v5(3), 54), (quote_v5(4), 54)]
)
def test_a_td_is_held_to_each_of_its_measurements(verified_td, quote, body: int, policy, offset: int, key: str) -> None:
    value = quote[body + offset : body + offset + 48]
    verified = verified_td(quote)
    for expected in (
        policy([bytes(48), value]),
        parse_policy(f'{key} = ["{value.hex()}"]'.encode()).policy().policies[1],
    ):
        (check,) = expected.check(verified)
        assert check.ok
        assert check.id == key.replace("_", "-")
    (wrong,) = policy([bytes(48)]).check(verified)
    assert not wrong.ok
    assert wrong.found == value.hex()


@pytest.mark.parametrize(("policy", "offset", "key"), [(TdAttributes, 120, "td_attributes"), (Xfam, 128, "xfam")])
def test_attributes_of_a_td_are_compared_under_their_mask(verified_td, policy, offset: int, key: str) -> None:
    found = bytes.fromhex("0100001000000080")
    verified = verified_td(poke(quote_v5(3), 54 + offset, found))
    assert policy(found).check(verified)[0].ok
    assert not policy(bytes(8)).check(verified)[0].ok
    mask = bytes.fromhex("0000001000000000")
    assert policy(mask, mask).check(verified)[0].ok
    (unwanted,) = policy(bytes(8), mask).check(verified)
    assert not unwanted.ok
    assert mask.hex() in unwanted.expected
    from_file = parse_policy(f'{key} = "{mask.hex()}/{mask.hex()}"'.encode()).policy()
    assert from_file.policies[1] == policy(mask, mask)
    with pytest.raises(ConfigError, match="leaves out"):
        policy(found, mask)


@pytest.mark.parametrize(
    "policy",
    [MrEnclave([bytes(32)]), MrSigner([bytes(32)]), IsvProdId(0), MinIsvSvn(0)],
    ids=lambda one: one.identifier,
)
def test_an_expectation_of_an_enclave_refuses_a_td_and_names_what_tds_have(verified_td, policy) -> None:
    (check,) = policy.check(verified_td(quote_v4(0x81)))
    assert not check.ok
    assert check.found == f"the quote of a TD, which has no {policy.title}"
    assert "MRTD" in check.advice


@pytest.mark.parametrize(
    "policy",
    [*(kind([bytes(48)]) for kind, _, _ in TD_FIELDS), TdAttributes(bytes(8)), Xfam(bytes(8))],
    ids=lambda one: one.identifier,
)
def test_an_expectation_of_a_td_refuses_an_enclave_and_names_what_enclaves_have(verify, policy) -> None:
    (check,) = policy.check(verify())
    assert not check.ok
    assert check.found == f"the quote of an SGX enclave, which has no {policy.title}"
    assert "MRENCLAVE" in check.advice


def test_a_file_about_enclaves_and_tds_at_once_is_a_mistake() -> None:
    file = parse_policy(f'mr_signer = ["{"ab" * 32}"]\nmr_td = ["{"cd" * 48}"]'.encode())
    with pytest.raises(ConfigError, match="mr_signer belong to SGX enclaves, mr_td to TDs"):
        file.policy()


def test_no_advice_about_a_td_names_what_only_enclaves_have(verified_td) -> None:
    findings = safe_defaults().check(verified_td(poke(quote_v5(3), 54 + 120, b"\x01" + bytes(7))))
    assert {"no-debug", "td-sept-ve-disable", "td-service-td"} <= set(failed(findings))
    advice = " ".join(check.advice for check in findings)
    assert "enclave" not in advice
    assert "TD without its debug attribute" in advice


# Arguments.


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MrSigner(bytes(32)), "found one"),
        (lambda: MrSigner("ab" * 32), "found one"),
        (lambda: MrSigner(["ab" * 32]), "bytes.fromhex"),
        (lambda: MrSigner([bytearray(32)]), "make bytes"),
        (lambda: MrSigner([memoryview(bytes(32))]), "make bytes"),
        (lambda: MrEnclave([None]), "found NoneType"),
        (lambda: MrTd([True]), "found bool"),
        (lambda: IsvProdId(True), "found bool"),
        (lambda: MinIsvSvn("3"), "found str"),
        (lambda: MinTcbEvaluation(None), "found NoneType"),
        (lambda: ReportData("00"), "bytes.fromhex"),
        (lambda: HeldData("text"), "bytes.fromhex"),
        (lambda: TdAttributes(0), "found int"),
        (lambda: AcceptTcb(TcbStatus.UP_TO_DATE), "found one"),
        (lambda: AcceptAdvisories({"INTEL-SA-00334": date(2027, 1, 1)}), "found date"),
        (lambda: AcceptAdvisories(["INTEL-SA-00334"]), "found list"),
        (lambda: AllOf(MrSigner), "found MrSigner"),
        (lambda: MrSigner(None), "MRSIGNER: expected Iterable, found NoneType"),
        (lambda: AcceptTcb(None), "found NoneType"),
        (lambda: safe_defaults(allow_debug="no"), "allow_debug: expected bool, found str"),
        (lambda: safe_defaults(accept_simulated=1), "accept_simulated: expected bool, found int"),
        (lambda: AnyOf(None), "found NoneType"),
    ],
)
def test_a_value_of_another_type_is_a_type_error_with_a_sentence(make, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MrSigner([bytes(48)]), "expected 32 bytes, found 48"),
        (lambda: MrTd([bytes(32)]), "expected 48 bytes, found 32"),
        (lambda: IsvProdId(65536), "0 to 65535"),
        (lambda: MinIsvSvn(-1), "0 to 65535"),
        (lambda: AcceptTcb(["Fine"]), "known are UpToDate"),
        (lambda: ReportData(bytes(65)), "1 to 64"),
        (lambda: AcceptAdvisories({"INTEL-SA-00334": datetime(2027, 1, 1)}), "no time zone"),  # noqa: DTZ001
    ],
)
def test_a_value_out_of_range_is_a_configuration_error(make, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


# The safe defaults.


def appraised(policy, verified) -> list[str]:
    return failed(appraise(verified, policy).findings)


def test_one_policy_alone_stands_on_the_safe_defaults(world, verify) -> None:
    signer = MrSigner([verify().quote.body.mr_signer])
    assert appraised(signer, verify(debug=True)) == ["hardware", "no-debug"]
    world.authority.set_status("OutOfDate")
    assert appraised(signer, verify())[:2] == ["hardware", "tcb-status"]
    assert appraised(AnyOf(signer, IsvProdId(9)), verify())[:2] == ["hardware", "tcb-status"]


def test_what_a_policy_replaces_is_replaced_and_nothing_else(world, verify, verified_td) -> None:
    world.authority.set_status("SWHardeningNeeded")
    hardened = AcceptTcb([TcbStatus.SW_HARDENING_NEEDED])
    assert appraised(hardened, verify(debug=True)) == ["hardware", "no-debug"]
    lax = safe_defaults(accept_tcb=hardened.statuses, allow_debug=True, accept_simulated=True)
    assert appraised(lax, verify(debug=True)) == []
    assert appraised(AllOf(IsvProdId(1), AllOf(lax)), verify(debug=True)) == []
    # In a choice every branch stands by itself.
    choice = AnyOf(AllOf(lax, IsvProdId(9)), MrSigner([verify().quote.body.mr_signer]))
    assert {"hardware", "no-debug", "tcb-status"} <= set(appraised(choice, verify(debug=True)))
    assert "no-debug" in appraised(AllOf(AnyOf(lax, IsvProdId(1)), IsvProdId(1)), verify(debug=True))
    unguarded = verified_td(poke(quote_v5(3), 54 + 120, bytes(8)))
    assert "td-sept-ve-disable" in appraised(MrTd([bytes(48)]), unguarded)
    assert "td-sept-ve-disable" not in appraised(safe_defaults(allow_unsafe_td=True), unguarded)


@pytest.mark.parametrize(("grace", "error"), [(5, TypeError), (None, TypeError), (timedelta(days=-1), ConfigError)])
def test_a_grace_is_a_length_of_time(verify, grace, error) -> None:
    with pytest.raises(error):
        appraise(verify(), safe_defaults(), grace=grace)
