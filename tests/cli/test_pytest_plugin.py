"""The pytest plugin for relying parties, run by a pytest of its own as the how-to shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from confcom import AllOf, ConfigError, MrSigner, Verdict, safe_defaults
from confcom.cli.root import run
from confcom.errors import ExitCode
from confcom.pytest_plugin import REFUSED, SimulatedEvidence, make_evidence
from signed_enclaves import enclave_file, sigstruct

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "test-a-policy.md"
ENCLAVE = {"enclave": "web", "signer": "us", "isv_prod_id": 3, "isv_svn": 4}
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_the_example_of_the_page(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "test_policy.py").write_text(example)
    (tmp_path / "app.signed.so").write_bytes(enclave_file(sigstruct()))
    assert run(["policy", "from", str(tmp_path / "app.signed.so"), "-o", str(tmp_path / "policy.toml")]) == ExitCode.OK
    done = _pytest(tmp_path)
    assert f"{len(REFUSED) + 1} passed" in done.stdout, done.stdout + done.stderr
    # A policy that says too little is found out: it names no signer, and takes debug enclaves.
    (tmp_path / "policy.toml").write_text("allow_debug = true\n")
    lax = _pytest(tmp_path)
    failed = set(re.findall(r"FAILED .*\[(\w+)\]", lax.stdout))
    assert failed == {"debug", "wrong_signer"}, lax.stdout
    # An enclave file that cannot be used is one sentence and what to do, without our source.
    (tmp_path / "app.signed.so").write_bytes(enclave_file(sigstruct())[:2000])
    cut = _pytest(tmp_path).stdout
    assert "the enclave file app.signed.so: ends inside its SIGSTRUCT, which begins at byte 1025" in cut
    assert "what to do: Copy the whole file again." in cut
    assert "enclave_file.py" not in cut


def _pytest(folder: Path) -> subprocess.CompletedProcess[str]:
    # Where the entry point is not installed the plugin is named; where it is, naming it again does no harm.
    named = () if entry_points(group="pytest11", name="confcom") else ("-p", "confcom.pytest_plugin")
    words = [sys.executable, "-m", "pytest", *named, "-q", "-rf", "-p", "no:cacheprovider", "test_policy.py"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=240)


def evidence(name: str, **more: object) -> SimulatedEvidence:
    return make_evidence(name, ENCLAVE | more, bytes(64), NOW)


STRICT = AllOf(safe_defaults(accept_simulated=True), MrSigner([evidence("accepted").quote[176:208]]))


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("accepted", Verdict.ACCEPTED, ""),
        ("debug", Verdict.REFUSED, "debug"),
        ("wrong_signer", Verdict.REFUSED, "mr-signer"),
        ("revoked", Verdict.INVALID, "revoked"),
        ("out_of_date", Verdict.REFUSED, "OutOfDate"),
        ("coming_promotion", Verdict.REFUSED, "OutOfDate"),
        ("expired_collateral", Verdict.UNDECIDED, "expired"),
    ],
)
def test_each_world_is_refused_for_its_own_reason(name: str, verdict: Verdict, words: str) -> None:
    found = evidence(name).judge(STRICT)
    assert found.verdict is verdict, found.error
    wrong = [check for check in found.checks if not check.ok]
    said = " ".join(f"{check.id} {check.found}" for check in wrong) + str(found.error or "")
    assert words in said


def test_the_coming_promotion_differs_from_today_by_its_collateral_alone() -> None:
    today, coming = evidence("accepted"), evidence("coming_promotion")
    assert today.quote == coming.quote
    assert today.collateral.tcb_info != coming.collateral.tcb_info


def test_expired_collateral_may_be_accepted_for_some_days(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("isv_prod_id = 3\ncollateral_grace_days = 1\n")
    assert not evidence("expired_collateral").judge(policy)
    policy.write_text("isv_prod_id = 3\ncollateral_grace_days = 3\n")
    assert evidence("expired_collateral").judge(policy)
    assert evidence("expired_collateral").now == NOW + timedelta(days=31)


@pytest.mark.parametrize(("name", "enclave"), [("accepte", ENCLAVE), ("accepted", {}), ("accepted", {"enclave": 3})])
def test_a_mistake_is_named(name: str, enclave: object) -> None:
    with pytest.raises(ConfigError):
        make_evidence(name, enclave, bytes(64), NOW)
