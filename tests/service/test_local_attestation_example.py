"""The program of `examples/local_attestation`: two enclaves of one machine, without quotes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from confcom.errors import ExitCode
from sample_stage import EXAMPLES, SIGNER, Ended, Stage, finish


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.prepare()
    yield stage
    stage.end()


def neighbours(stage: Stage, a: Path, b: Path, *options: str) -> Ended:
    program = EXAMPLES / "local_attestation" / "neighbours.py"
    return finish(stage.start(program, "--machine", stage.machine, "--signer", SIGNER, *options, a, b))


@pytest.mark.promise("M8")
def test_two_enclaves_of_one_machine_attest_each_other_without_collateral(stage: Stage) -> None:
    for name in (stage.folder / "collateral").iterdir():
        name.unlink()
    ended = neighbours(stage, stage.declare("a", isv_svn=2), stage.declare("b", isv_svn=3))
    assert ended.code == ExitCode.OK, ended.err
    assert "A: accepted its neighbour" in ended.out
    assert "security version 3" in ended.out
    assert "B: accepted its neighbour" in ended.out
    assert "security version 2" in ended.out


@pytest.mark.promise("M12")
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"signer": "Mallory"}, "signer bac2c3b4b23572b3"),
        ({"isv_prod_id": 2}, "product 2"),
        ({"isv_svn": 1}, "security version 1"),
        ({"debug": True}, "debug ON"),
    ],
)
def test_who_is_not_expected_is_refused(fields: dict[str, object], words: str, stage: Stage) -> None:
    ended = neighbours(stage, stage.declare("a"), stage.declare("impostor", **fields))
    assert ended.code == ExitCode.REFUSED
    assert words in ended.err
    assert ended.out == ""


def test_a_file_that_is_no_declaration_is_a_sentence(stage: Stage) -> None:
    ended = neighbours(stage, stage.declare("a"), stage.folder / "nowhere.toml")
    assert ended.code == ExitCode.USAGE
    assert "nowhere.toml" in ended.err
