"""The page "install in five minutes", followed word by word on a cluster that knows nothing of confcom.

Needs a release that `./dev release` made: `CONFCOM_E2E_RELEASE=FOLDER ./dev e2e --thorough -k five_minutes`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_addon import Addon
from helm import ROOT, helm_program
from kubectl import Kubectl

RELEASE = os.environ.get("CONFCOM_E2E_RELEASE", "")
PAGE = ROOT / "docs" / "howto" / "install-in-five-minutes.md"


@pytest.fixture
def bare_node(addon: Addon, cluster: Kubectl) -> Iterator[str]:
    """The node of a cluster with neither add-on nor label nor image."""
    outcome = addon("disable", "--purge", "--yes", "-o", "none")
    assert outcome.code == 0, outcome.err
    cluster.wait("EPC to be gone", lambda: addon.allocatable() == 0)
    node = addon.node()["metadata"]["name"]
    cluster("label", "node", node, "confcom.dev/sgx-")
    home = Path(os.environ["KUBE_HOME"])
    ctr = [str(home / "bin" / "ctr"), "--address", str(home / "run" / "containerd" / "containerd.sock"), "-n", "k8s.io"]
    names = subprocess.run([*ctr, "images", "ls", "-q"], capture_output=True, text=True, check=True).stdout.split()
    released = [name for name in names if name.startswith("docker.io/confcom/")]
    subprocess.run([*ctr, "images", "rm", *released], check=True, capture_output=True)
    yield node
    cluster("delete", "job", "attest", "--ignore-not-found")
    assert addon("disable", "--purge", "--yes", "-o", "none").code == 0
    cluster("delete", "secret", "-A", "-l", "name=confcom,owner=helm")
    cluster("label", "node", node, "confcom.dev/sgx=true", "--overwrite")


def commands() -> str:
    """What the page shows indented, in its order."""
    lines = re.findall(r"^    (.*)$", PAGE.read_text(), re.MULTILINE)
    return "\n".join(lines)


@pytest.mark.promise("M1")
@pytest.mark.timeout(900)
@pytest.mark.skipif(not RELEASE, reason="needs a release: CONFCOM_E2E_RELEASE names the folder that ./dev release made")
def test_the_page_leads_to_an_attested_job(bare_node: str, cluster: Kubectl, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    home = Path(os.environ["KUBE_HOME"])
    for name, program in (
        ("kubectl", cluster.program),
        ("helm", helm_program(required=True)),
        ("ctr", home / "bin/ctr"),
    ):
        (programs / name).symlink_to(program)
    shutil.copy(next(Path(RELEASE).glob("confcom-bundle-*.tar")), tmp_path)
    (tmp_path / "home").mkdir()
    environment = {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
        "KUBECONFIG": cluster.kubeconfig,
        "CONTAINERD_ADDRESS": str(home / "run" / "containerd" / "containerd.sock"),
    }
    script = "set -eu\n" + commands().replace("label node NODE", f"label node {bare_node}")
    started = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=800
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ACCEPTED" in done.stdout
    assert "SIMULATED" in done.stdout
    sys.stdout.write(f"from bundle to an attested Job: {seconds:.0f} s\n")
