"""The image: the same bytes for the same sources, and at home under the strictest rules of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster_jobs import job, one_container
from cluster_plugin import own_cluster
from kubectl import Kubectl


@pytest.mark.complaint("marblerun #575")
def test_two_builds_are_the_same_bytes(cluster: Kubectl, tmp_path: Path) -> None:
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the image of this cluster was not built here")
    from imaging.application import confcom_layer
    from imaging.base import provide_base

    base = provide_base(home / "images")
    digests = []
    for number, mask in enumerate((0o022, 0o077)):
        before = os.umask(mask)
        digests.append(confcom_layer(base, tmp_path / f"{number}.tar").digest)
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
    spec = one_container(image, "sh", "-c", "id; confcom --version", securityContext=context)
    log = run(job("restricted", "e2e", spec))
    assert "uid=65532(confcom) gid=65532(confcom)" in log
    assert "confcom, version" in log
