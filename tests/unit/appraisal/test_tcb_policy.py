"""TCB policies: the reason down to one SVN, advisories with an end, the evaluation number."""

from __future__ import annotations

from datetime import timedelta

import pytest

from confcom.appraisal.findings import Verdict
from confcom.appraisal.policy import AcceptAdvisories, AcceptTcb, AllOf, MinTcbEvaluation, safe_defaults
from confcom.appraisal.policy_file import parse_policy
from confcom.appraisal.result import appraise
from confcom.errors import ConfigError, TcbNotSupportedError
from confcom.formats.tcb_info import TcbStatus

UP_TO_DATE = AcceptTcb([TcbStatus.UP_TO_DATE])


@pytest.fixture
def verify(world, make_quote, verifier, now):
    def verify(days=0, *, any_tcb=False):
        return verifier.verify(make_quote(), world.publish(), now=now + timedelta(days=days), any_tcb=any_tcb)

    return verify


def test_an_old_platform_is_told_which_component_is_too_low(world, verify) -> None:
    top = world.tcb_info.levels[0].tcb
    needed = top.sgx_components[1] + 1
    world.authority.raise_tcb(top.with_component(1, needed), advisory_ids=["INTEL-SA-01234"])
    found = UP_TO_DATE.check(verify())
    assert [check.id for check in found] == ["tcb-status", "tcb-component"]
    assert "SGX component 2" in found[1].expected
    assert f"at least {needed}" in found[1].expected
    assert found[1].found == str(needed - 1)
    assert "INTEL-SA-01234" in found[0].found
    assert f"is {needed - 1}, level UpToDate of 2026-06 needs {needed}" in found[1].advice


def test_advice_names_what_is_behind(world, verify) -> None:
    """A new BIOS does not help where the quoting enclave alone is old."""
    newest = world.authority.qe_identity.levels[0]
    newest.status = "OutOfDate"
    assert UP_TO_DATE.check(verify())[0].advice.startswith("Update the quoting enclave; until then")
    newest.isv_svn, world.authority.qe_identity.levels = 0xFFFF, [newest]
    assert UP_TO_DATE.check(verify(any_tcb=True))[0].advice == "Update the quoting enclave; nothing accepts this."
    with pytest.raises(TcbNotSupportedError, match="as low as this QE") as caught:
        verify()
    assert caught.value.advice() == "Update the quoting enclave."
    newest.isv_svn, newest.status = 0, "UpToDate"
    world.authority.set_status("OutOfDate")
    assert UP_TO_DATE.check(verify())[0].advice.startswith("Update BIOS and microcode of the platform")


@pytest.mark.parametrize(("advisories", "said"), [(["INTEL-SA-00334"], "named advisories"), ([], "platform")])
def test_advisories_are_to_be_read_where_some_are_named(world, verify, advisories: list[str], said: str) -> None:
    world.authority.set_status("SWHardeningNeeded", advisories)
    assert UP_TO_DATE.check(verify())[0].advice.startswith(f"Check the {said}: the enclave must be hardened")


def test_a_platform_that_is_accepted_is_told_nothing_of_components(verify) -> None:
    (found,) = UP_TO_DATE.check(verify())
    assert found.ok


def test_an_advisory_is_accepted_until_its_end(world, verify, now) -> None:
    world.authority.set_status("SWHardeningNeeded", ["INTEL-SA-00334"])
    until = AcceptAdvisories({"INTEL-SA-00334": now + timedelta(days=2)})
    assert [check.ok for check in until.check(verify())] == [True]
    assert [check.ok for check in until.check(verify(2))] == [False]
    (other,) = AcceptAdvisories({"INTEL-SA-00001": now + timedelta(days=99)}).check(verify())
    assert not other.ok
    assert "INTEL-SA-00334" in other.found


def test_old_collateral_is_refused_by_its_number(world, verify) -> None:
    number = world.tcb_info.tcb_evaluation_data_number
    assert [check.ok for check in MinTcbEvaluation(number).check(verify())] == [True]
    assert [check.ok for check in MinTcbEvaluation(number + 1).check(verify())] == [False]


def test_grace_forgives_expired_collateral_for_its_days_and_says_so(verify) -> None:
    policy = safe_defaults(accept_simulated=True)
    assert appraise(verify(32), policy).verdict is Verdict.UNDECIDED
    forgiven = appraise(verify(32), policy, grace=timedelta(days=5))
    assert forgiven.verdict is Verdict.ACCEPTED
    assert "grace" in next(check.found for check in forgiven.findings if check.id == "collateral-fresh")
    assert appraise(verify(60), policy, grace=timedelta(days=5)).verdict is Verdict.UNDECIDED
    assert appraise(verify(60), policy, grace=timedelta.max).verdict is Verdict.ACCEPTED


def test_grace_never_makes_early_collateral_valid(verify) -> None:
    assert appraise(verify(-10), AllOf(UP_TO_DATE), grace=timedelta(days=30)).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy.toml", "min_isv_svn = 2\n[accept_advisories]\nINTEL-SA-00334 = 2027-01-01\n"),
        ("policy.yaml", "min_isv_svn: 2\naccept_advisories:\n  INTEL-SA-00334: 2027-01-01\n"),
        ("policy.json", '{"min_isv_svn": 2, "accept_advisories": {"INTEL-SA-00334": "2027-01-01"}}'),
    ],
)
def test_the_three_forms_of_a_policy_file_say_the_same(name: str, text: str) -> None:
    assert parse_policy(text.encode(), name=name) == parse_policy(
        b'min_isv_svn = 2\naccept_advisories = {INTEL-SA-00334 = "2027-01-01"}\n'
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("policy.json", '{"allow_debug": false, "allow_debug": true}', "'allow_debug' stands twice in one object"),
        ("policy.yaml", "allow_debug: false\nallow_debug: true\n", "the key 'allow_debug' stands here twice"),
        ("policy.yaml", "---\nallow_debug: false\n---\nallow_debug: true\n", "has 2 documents, not one"),
        ("policy.yaml", "min_isv_svn: 0x" + "f" * 60_000, "a number of 60002 signs"),
        ("policy.yaml", "mr_signer: " + "[" * 60_000, "more than 100 lists and maps"),
        ("policy.json", '{"min_isv_svn": ' + "7" * 60_000 + "}", "is not valid"),
        ("policy.toml", "mr_signer = " + "[" * 60_000, "is not valid"),
    ],
)
def test_a_policy_that_two_readers_would_read_differently_is_refused(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_policy(text.encode(), name=name)
