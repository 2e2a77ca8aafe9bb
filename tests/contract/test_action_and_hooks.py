"""The GitHub Action and the pre-commit hooks, run as they run: the steps of action.yml, and `pre-commit try-repo`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from confcom.cli.root import root
from documented import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
# Installs take what is installed here in place of an index.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": sysconfig.get_path("purelib")}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a user: evidence with its collateral, policies good and bad, pods good and bad."""
    folder = tmp_path_factory.mktemp("sample")
    texts = {
        "good.policy": "version= 1.0;\nauthorizationrules\n{\n\t=> permit();\n};\n",
        "::error::lint": "version= 1.0;\nauthorizationrules\n{\n\t=> permit();\n};\n",
        "::warning::pod": "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b, resources: "
        "{limits: {sgx.intel.com/epc: 10Mi}}}]}\n",
        "with blank.policy": "version= 1.0;\nauthorizationrules\n{\n\t=> permit();\n};\n",
        "bad.policy.txt": "version= 1.0;\nauthorizationrules\n{\n",
        "pods/good.yaml": "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b, resources: "
        "{limits: {sgx.intel.com/epc: 10Mi}}}]}\n",
        "pods/deep/bad.yml": "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b, resources: "
        "{limits: {sgx.intel.com/epc: 10}}}]}\n",
        "policy.toml": "accept_tcb = ['UpToDate']\n",
        "deploy/debug.policy.toml": "accept_tcb = ['UpToDate']\nallow_degub = true\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("SGX_AESM_ADDR", raising=False)
        for call in (
            "simulate machine -o m.json",
            "simulate collateral m.json -o col",
            "quote --machine m.json --report-data 00 -o q.bin",
        ):
            assert CliRunner().invoke(root, call.split()).exit_code == 0
    for command in ("git init -q", "git add -A"):
        subprocess.run(command.split(), cwd=folder, check=True)
    return folder


def run_action(folder: Path, work: Path, *, install: bool = False, **inputs: str) -> tuple[int, str, dict[str, str]]:
    """Run the steps of action.yml as a runner does; exit code, what was printed, and the outputs of `verify`."""
    given = {name: value["default"] for name, value in ACTION["inputs"].items()} | inputs

    def filled(text: str) -> str:
        values = {f"inputs.{name}": value for name, value in given.items()} | {"github.action_path": str(ROOT)}
        return re.sub(r"\$\{\{ ([a-z._]+) \}\}", lambda found: values[found[1]], text)

    work.mkdir()
    paths, outputs, printed = work / "path", work / "outputs", ""
    paths.touch()
    outputs.touch()
    for step in ACTION["runs"]["steps"]:
        if "if" in step and not given[re.fullmatch(r"inputs\.([a-z]+) != ''", step["if"])[1]]:  # type: ignore[index]
            continue
        if step["name"] == "Install confcom" and not install:
            continue
        found = [*reversed(paths.read_text().split()), str(Path(sys.executable).parent), os.environ["PATH"]]
        variables = {name: filled(text) for name, text in step["env"].items()}
        runner = {"RUNNER_TEMP": str(work), "GITHUB_PATH": str(paths), "GITHUB_OUTPUT": str(outputs)}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=folder,
            env=os.environ | OFFLINE | {"PATH": ":".join(found)} | runner | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        printed += done.stdout + done.stderr
        if done.returncode:
            return done.returncode, printed, dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    return 0, printed, dict(line.split("=", 1) for line in outputs.read_text().splitlines())


def test_no_input_is_part_of_a_script() -> None:
    """Text of an input in a script would be run."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"], step["name"]
        assert step["shell"] == "bash"


def test_every_input_is_used_and_every_output_is_set() -> None:
    used = {name for step in ACTION["runs"]["steps"] for name in re.findall(r"inputs\.([a-z]+)", json.dumps(step))}
    assert used == set(ACTION["inputs"])
    scripts = "".join(step["run"] for step in ACTION["runs"]["steps"])
    assert all(f'echo "{name}=' in scripts for name in ACTION["outputs"])


def test_the_action_installs_itself_and_verifies(sample: Path, tmp_path: Path) -> None:
    code, printed, outputs = run_action(
        sample, tmp_path / "r", install=True,
        evidence="q.bin", collateral="col", policy="policy.toml",
        arguments="--trust-root=col/root_ca.pem\n\n--report-data=00\n",
    )  # fmt: skip
    assert code == 0, printed
    assert outputs["verdict"] == "accepted"
    assert json.loads(Path(outputs["result"]).read_text())["simulated"] is True
    assert (tmp_path / "r" / "confcom" / "bin" / "confcom").is_file()


@pytest.mark.parametrize(
    ("inputs", "code", "verdict", "said"),
    [
        ({"evidence": "q.bin", "collateral": "col"}, 4, "invalid", "root-untrusted"),
        ({"evidence": "policy.toml", "collateral": "col"}, 3, "invalid", "malformed-input"),
        ({"evidence": "nothing", "collateral": "col"}, 2, "", "nothing"),
        ({"evidence": "q.bin", "arguments": "--nonsense"}, 2, "", "No such option"),
        ({"policies": "*.policy\n"}, 0, None, "with blank.policy"),
        ({"policies": "::error::*"}, 0, None, "::error::lint"),
        ({"pods": "::warning::*"}, 0, None, "::warning::pod"),
        ({"policies": "*.policy\n*.txt"}, 3, None, "bad.policy.txt"),
        ({"policies": "policy.toml\n*.policy"}, 0, None, "the policy file can be used"),
        ({"policies": "**/*.toml"}, 3, None, "did you mean 'allow_debug'?"),
        ({"policies": "no*.policy"}, 1, None, "no match"),
        ({"pods": "pods/*.yaml"}, 0, None, "completed"),
        ({"pods": "pods/**/*.y*ml"}, 5, None, "refused"),
        ({"policies": "$(touch ran);`touch ran`"}, 2, None, "cannot read"),
    ],
)
def test_the_action_fails_with_the_commands_exit_code(
    sample: Path, tmp_path: Path, inputs: dict[str, str], code: int, verdict: str | None, said: str
) -> None:
    found, printed, outputs = run_action(sample, tmp_path / "r", **inputs)
    assert (found, outputs.get("verdict")) == (code, verdict), printed
    assert said in printed
    assert "Traceback" not in printed
    assert not [line for line in printed.splitlines() if line.lstrip().startswith("::")], "a command of the runner"
    assert not (sample / "ran").exists()


HOOKS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


def test_hooks_of_pre_commit_pass_and_fail(sample: Path, tmp_path: Path) -> None:
    """In the environment that pre-commit makes for them from a clone of this repository."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "node_modules", ".*cache"))
    for command in ("git init -q", "git add -A", "git -c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(command.split(), cwd=source, check=True)
    environment = os.environ | OFFLINE | {"PRE_COMMIT_HOME": str(tmp_path / "home")}

    def run(hook: str, *files: str, **settings: Any) -> tuple[int, str]:
        config = {"repos": [{"repo": str(source), "rev": "HEAD", "hooks": [{"id": hook} | settings]}]}
        revision = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=source, text=True).strip()
        config["repos"][0]["rev"] = revision
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [sys.executable, "-m", "pre_commit", "run", hook, "-c", str(tmp_path / "config.yaml"), "--files", *files],
            cwd=sample, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    judged = ["--collateral", "col", "--trust-root", "col/root_ca.pem"]
    assert run("confcom-policy-lint", "good.policy", "with blank.policy", "policy.toml")[0] == 0
    code, printed = run("confcom-policy-lint", "good.policy", "bad.policy.txt", files="bad")
    assert (code, "exit code: 3" in printed) == (1, True), printed
    code, printed = run("confcom-policy-lint", "policy.toml", "deploy/debug.policy.toml")
    assert (code, "did you mean 'allow_debug'?" in printed) == (1, True), printed
    assert run("confcom-check-pods", "pods/good.yaml")[0] == 0
    code, printed = run("confcom-check-pods", "pods/good.yaml", "pods/deep/bad.yml")
    assert (code, "exit code: 5" in printed) == (1, True), printed
    assert "Skipped" in run("confcom-verify", "q.bin", args=judged)[1]
    assert run("confcom-verify", "q.bin", files="^q", args=judged)[0] == 0
    code, printed = run("confcom-verify", "q.bin", files="^q", args=judged[:2])
    assert (code, "exit code: 4" in printed) == (1, True), printed


def test_the_page_names_every_hook_and_input() -> None:
    page = (ROOT / "docs" / "howto" / "check-in-ci.md").read_text()
    assert [hook["id"] for hook in HOOKS if f"`{hook['id']}`" not in page] == []
    assert [name for name in ACTION["inputs"] if name != "python" and name not in page] == []
