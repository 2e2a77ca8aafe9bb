"""`confcom policy try`: what a draft would decide on recorded evidence, before it is activated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confcom.cli.root import run
from confcom.tokens.policy_jws import wrap
from running_attestation_service import enclave_quote, make_world

STRICT = 'version=1.0;authorizationrules{[type=="x-ms-sgx-svn", value>=2] => permit();};'
OPEN = "version=1.0;authorizationrules{=> permit();};"


@pytest.fixture(scope="module")
def quotes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, world = tmp_path_factory.mktemp("quotes"), make_world()
    paths = [folder / "release.bin", folder / "debug.bin"]
    for path, debug in zip(paths, (False, True), strict=True):
        path.write_bytes(enclave_quote(world, debug=debug))
    return [str(path) for path in paths]


def test_a_draft_beside_the_policy_of_the_service(
    tmp_path: Path, quotes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    draft = tmp_path / "draft.txt"
    draft.write_text(STRICT)
    assert run(["policy", "try", str(draft), *quotes]) == 0
    said = capsys.readouterr().out
    assert f"{quotes[0]}: accepted → denied: no rule of the policy permitted" in said
    assert f"{quotes[1]}: denied: no rule" in said
    assert 'line 1: [type=="x-ms-sgx-svn", value>=2] => permit();' in said
    assert "claims matched: 0; did not apply" in said
    assert said.endswith("2 judged, 1 decided otherwise than before\n")


def test_a_draft_beside_another_policy_for_machines(
    tmp_path: Path, quotes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    draft, current = tmp_path / "draft.jws", tmp_path / "current.txt"
    draft.write_text(wrap(OPEN))
    current.write_text(STRICT)
    assert run(["policy", "try", str(draft), quotes[0], "--current", str(current), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["judged"], found["changed"]) == (1, 1)
    (outcome,) = found["outcomes"]
    assert (outcome["before"], outcome["after"], outcome["trace"][0]["applied"]) == ("denied", "accepted", True)


def test_the_record_of_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft, record = tmp_path / "draft.txt", tmp_path / "audit.jsonl"
    draft.write_text(STRICT)
    line = {"id": 7, "at": "2026-11-21T09:30:00Z", "kind": "SgxEnclave", "evidence_hash": "ab", "verdict": "accepted"}
    lines = [line | {"claims": '{"x-ms-sgx-svn": 1}'}, line | {"claims": '{"x-ms-sgx-svn": 2}'}, line | {"claims": ""}]
    record.write_text("\n".join(json.dumps(each) for each in lines) + "\n\n")
    assert run(["policy", "try", str(draft), str(record), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["id"], each["after"]) for each in found["outcomes"]] == [(7, "denied"), (7, "accepted")]
    assert found["changed"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"id": 1}', "line 1"),
        (b"{" * 100_000, "line 1"),
        (b'{"id":1,"at":"","evidence_hash":"","verdict":"accepted","claims":"[]"}', "claims"),
        (b"", "the input is empty"),
    ],
)
def test_what_is_no_evidence_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    draft, record = tmp_path / "draft.txt", tmp_path / "record"
    draft.write_text(OPEN)
    record.write_bytes(content)
    assert run(["policy", "try", str(draft), str(record)]) == 3
    text = capsys.readouterr().err
    assert said in text
    assert "record" in text
    assert run(["policy", "try", str(record), str(record)]) == 3
