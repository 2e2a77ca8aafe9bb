"""`confcom policy lint`: every slip in a policy at its place, and the policy without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confcom.cli.root import run
from confcom.tokens.policy_jws import wrap

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


def test_a_policy_is_read_in_the_forms_that_are_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.txt"
    for data in (MENDED.encode("utf-16"), b"\xef\xbb\xbf" + MENDED.encode(), wrap(MENDED).encode()):
        policy.write_bytes(data)
        assert run(["policy", "lint", str(policy)]) == 0
        assert "follows the grammar" in capsys.readouterr().out
    latin = b"// \xfc\n" + MENDED.encode()
    for data, message in ((latin, "byte 0xfc in position 3"), (b"eyJ9.AA.AA", "policy is no JWS")):
        policy.write_bytes(data)
        for command in (["lint", str(policy)], ["try", str(policy), str(policy)]):
            assert run(["policy", *command]) == 3
            assert message in capsys.readouterr().err


def test_the_report_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.txt"
    policy.write_text("version=1.0;\x1b[2J")
    assert run(["policy", "lint", str(policy), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert (found["defects"][0]["line"], found["defects"][0]["column"]) == (1, 13)


@pytest.mark.parametrize(
    ("name", "text", "code", "said"),
    [
        ("a.toml", "min_isv_svn = 3\n", 0, "the policy file can be used"),
        ("a.yaml", "min_isv_svn: 3\n", 0, "can be used"),
        ("a.toml", "", 3, "is empty"),
        ("a.toml", "allow_degub = true\n", 3, "did you mean 'allow_debug'?"),
        ("a.toml", "min_isv_svn = 70000\n", 3, "min_isv_svn: Expected `int` <= 65535"),
        ("a.yml", "mr_signer: [xy]\n", 3, "mr_signer[0]: "),
        ("a.json", '{"isv_prod_id": 1, "isv_prod_id": 2}', 3, "stands twice"),
        ("a.json", "version= 1.0;", 3, "is not valid"),
        ("a.toml", f"isv_prod_id = 1\nmr_td = ['{'00' * 48}']\n", 3, "no evidence has both"),
        ("a.toml", f"#{'x' * 65536}", 2, "65536"),
    ],
)
def test_a_policy_file_is_read_as_verify_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, code: int, said: str
) -> None:
    (tmp_path / name).write_text(text)
    assert run(["policy", "lint", str(tmp_path / name)]) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    if code != 2:
        assert run(["policy", "lint", str(tmp_path / name), "--json"]) == code
        assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


def test_a_policy_file_has_no_known_repairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text("min_isv_svn = 3\n")
    assert run(["policy", "lint", str(tmp_path / "a.toml"), "-o", str(tmp_path / "b.toml")]) == 2
    assert "is a policy file" in capsys.readouterr().err
    assert not (tmp_path / "b.toml").exists()
