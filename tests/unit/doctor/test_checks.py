"""What a process needs by its role and mode, and how findings are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from confcom.devices.host import Host
from confcom.doctor.checks import Diagnosis, Finding, Level, Role, Subject, worst
from sgx_host_folder import write


@pytest.mark.parametrize(
    ("role", "environ", "gramine", "needs"),
    [
        ("application", {}, False, (True, True, False)),
        ("application", {"SGX_AESM_ADDR": ""}, False, (True, False, True)),
        ("application", {}, True, (False, False, True)),
        ("quote-helper", {"SGX_AESM_ADDR": "1"}, False, (True, True, False)),
    ],
)
def test_needs(
    tmp_path: Path, role: str, environ: dict[str, str], gramine: bool, needs: tuple[bool, bool, bool]
) -> None:
    if gramine:
        write(tmp_path, "dev/attestation/attestation_type", "dcap")
    subject = Subject.of(Host(tmp_path), environ, Role(role))
    assert (subject.opens_enclaves, subject.quotes_itself, subject.asks_helper) == needs


def test_what_is_missing_is_a_problem_only_for_those_who_need_it(tmp_path: Path) -> None:
    subject = Subject.of(Host(tmp_path), {"SGX_AESM_ADDR": "1"}, Role.APPLICATION)
    assert subject.missing("x", "no x", "get x", needed=True) == Finding("x", Level.PROBLEM, "no x", "get x")
    remark = subject.missing("x", "no x", "get x", needed=False)
    assert (remark.level, remark.advice) == (Level.OK, "")
    assert "mode is out-of-proc" in remark.found


def test_as_a_dictionary(tmp_path: Path) -> None:
    subject = Subject.of(Host(tmp_path), {}, Role.APPLICATION)
    warning = Finding("a", Level.WARNING, "b", "c")
    assert Diagnosis(subject, (warning,)).as_dict() == {
        "ok": True,
        "headline": "1 warning for an application here, its mode in-proc; first a: b",
        "simulated": False,
        "role": "application",
        "mode": "in-proc",
        "checks": [{"id": "a", "status": "warning", "found": "b", "advice": "c"}],
    }
    problem = Finding("p", Level.PROBLEM, "b", "c")
    assert Diagnosis(subject, (warning, problem)).problems == (problem,)


def test_what_matters_comes_first(tmp_path: Path) -> None:
    subject = Subject.of(Host(tmp_path), {}, Role.QUOTE_HELPER, simulated=True)
    levels = [Level.OK, Level.WARNING, Level.PROBLEM, Level.OK, Level.PROBLEM]
    found = Diagnosis.of(subject, [Finding(str(number), level, "x") for number, level in enumerate(levels)])
    assert [finding.id for finding in found.findings] == ["2", "4", "1", "0", "3"]
    assert found.headline == "2 problems and 1 warning for a quote helper on a SIMULATED platform; first 2: x"
    assert Diagnosis.of(subject, []).headline == "no problems for a quote helper on a SIMULATED platform"


@pytest.mark.parametrize("role", Role)
def test_a_simulated_platform_needs_nothing_of_the_node(tmp_path: Path, role: Role) -> None:
    subject = Subject.of(Host(tmp_path), {}, role, simulated=True)
    assert (subject.opens_enclaves, subject.quotes_itself, subject.asks_helper) == (False, False, False)
    assert "the platform is simulated" in subject.missing("x", "no x", "get x", needed=False).found
    asking = Subject.of(Host(tmp_path), {"SGX_AESM_ADDR": "1"}, role, simulated=True)
    assert asking.asks_helper is (role is Role.APPLICATION)


def test_the_worst_level() -> None:
    assert worst([]) is Level.OK
    assert worst([Level.OK, Level.PROBLEM, Level.WARNING]) is Level.PROBLEM
