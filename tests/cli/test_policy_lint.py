"""`confcom policy lint`: every slip in a policy at its place, and the policy without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confcom.cli.root import run

SLIPPED = """version=1.0;
authorizationrules{ c:[type=“$is-debuggable”] => permit() };
"""
MENDED = """version=1.0;
authorizationrules{ c:[type=="$is-debuggable"] => permit(); };
"""


def test_every_slip_with_its_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, mended = tmp_path / "policy.txt", tmp_path / "mended.txt"
    policy.write_text(SLIPPED)
    assert run(["policy", "lint", str(policy), "-o", str(mended)]) == 3
    said = capsys.readouterr().out
    assert "line 2, column 28" in said
    assert "write '=='" in said
    assert said.endswith("3 to correct\n")
    assert mended.read_text() == MENDED
    assert run(["policy", "lint", str(mended)]) == 0
    assert "follows the grammar" in capsys.readouterr().out


def test_the_report_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.txt"
    policy.write_text("version=1.0;\x1b[2J")
    assert run(["policy", "lint", str(policy), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert (found["defects"][0]["line"], found["defects"][0]["column"]) == (1, 13)
