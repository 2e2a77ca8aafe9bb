"""What the documents show to be copied is what it says: manifests that pass, Dockerfiles that a builder would read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from confcom.cli.root import root
from documented import ROOT, Block, blocks, check_build, objects

MANIFESTS = list(blocks("yaml"))
BUILDS = [*blocks("dockerfile"), Block("deploy/Containerfile", (ROOT / "deploy" / "Containerfile").read_text())]
WITH_PODS = ("Pod", "Job", "Deployment", "DaemonSet", "StatefulSet", "CronJob")


@pytest.mark.parametrize("block", MANIFESTS, ids=lambda block: block.place)
def test_every_manifest_is_read_and_its_pods_are_good(tmp_path: Path, block: Block) -> None:
    assert list(yaml.safe_load_all(block.text))
    found = [one for one in objects(block.text) if one["kind"] in WITH_PODS]
    if not found:
        return
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump_all(found))
    result = CliRunner().invoke(root, ["check-pods", str(path)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("block", BUILDS, ids=lambda block: block.place)
def test_every_dockerfile_is_one_and_its_commands_are_shell(block: Block) -> None:
    commands = check_build(block.text)
    for command in commands:
        done = subprocess.run(["sh", "-n"], input=command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert commands or "RUN" not in block.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RUN true\n", "RUN before FROM"),
        ("FROM a\nRUM true\n", "'RUM' is no instruction"),
        ("FROM a AS build\nFROM b\nCOPY --from=built /x /\n", "no stage built"),
        ("FROM a b\n", "'a b' is no image"),
        ('FROM a\nCMD ["x" "y"]\n', "Expecting ',' delimiter"),
        ("FROM a\nENV A\n", "sets nothing"),
    ],
)
def test_a_mistake_in_a_dockerfile_is_noticed(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_build(text)
