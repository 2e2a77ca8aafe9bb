"""The image: the same bytes for the same sources, and at home under the strictest rules of a cluster."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster_jobs import job, one_container
from cluster_plugin import own_cluster
from kubectl import Kubectl

LOCK = Path(__file__).resolve().parents[2] / "requirements" / "run.txt"
LOOK = """
import importlib.metadata, json, os, ssl, stat
found = {"privileged": [], "writable": [], "programs": []}
for folder, _, names in os.walk("/"):
    if folder.split("/")[1] in ("proc", "sys", "dev"):
        continue
    for name in names:
        path = os.path.join(folder, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            found["privileged"].append(path)
        if stat.S_ISREG(mode) and os.access(path, os.W_OK):
            found["writable"].append(path)
        if folder.endswith("bin"):
            found["programs"].append(name)
found["python"] = {one.name.lower().replace("_", "-"): one.version for one in importlib.metadata.distributions()}
with open("/var/lib/dpkg/status") as status:
    found["debian"] = [line.split()[1] for line in status if line.startswith("Package:")]
found["authorities"] = len(ssl.create_default_context().get_ca_certs())
print(json.dumps(found))
"""
UNWANTED = {"apt", "apt-get", "dpkg", "pip", "pip3", "perl", "bash", "curl", "wget", "openssl", "gcc", "ssh", "su",
            "sudo", "mount", "passwd", "nsenter", "unshare"}  # fmt: skip


@pytest.mark.complaint("marblerun #575")
def test_two_builds_are_the_same_bytes(cluster: Kubectl, tmp_path: Path) -> None:
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the image of this cluster was not built here")
    from imaging.application import build_wheel, confcom_layer
    from imaging.base import provide_base

    base = provide_base(home / "images")
    digests = []
    for number, mask in enumerate((0o022, 0o077)):
        before = os.umask(mask)
        wheel = build_wheel(tmp_path / str(number))
        digests.append(confcom_layer(base, tmp_path / f"{number}.tar", wheel).digest)
        os.umask(before)
    assert digests[0] == digests[1]


@pytest.mark.complaint("Azure/AKS #4506")
def test_it_runs_restricted_and_writes_nothing(run: Callable[..., str], image: str) -> None:
    context = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec = one_container(image, "sh", "-c", "id; confcom --version -v", securityContext=context)
    log = run(job("restricted", "e2e", spec))
    assert "uid=65532(confcom) gid=65532(confcom)" in log
    commit = "[0-9a-f]{40} of 20" if (LOCK.parent.parent / ".git").exists() else "unknown"
    assert re.search(rf"^commit {commit}", log, re.MULTILINE), log


@pytest.mark.complaint("Azure/AKS #4506")
def test_it_has_what_is_locked_and_nothing_that_helps_an_intruder(run: Callable[..., str], image: str) -> None:
    found = json.loads(run(job("content", "e2e", one_container(image, "python3", "-c", LOOK))).splitlines()[-1])
    assert found["privileged"] == []
    assert found["writable"] == []
    assert not UNWANTED & set(found["programs"])
    assert found["authorities"] > 100  # where programs over OpenSSL look for them
    locked = re.findall(r"^([a-z0-9_.-]+)==([^ ]+)( ;)?", LOCK.read_text(), re.MULTILINE)
    always = {name: number for name, number, condition in locked if not condition}
    assert found["python"].pop("confcom")
    assert always.items() <= found["python"].items() <= {(name, number) for name, number, _ in locked}
    # Scanners go by Debian's own list: it is there, and short.
    assert {"libc6", "python3", "ca-certificates"} <= set(found["debian"])
    assert len(found["debian"]) <= 65
