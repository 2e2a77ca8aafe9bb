"""What the add-on does with a Kubernetes that cannot do everything."""

from __future__ import annotations

import re

import pytest

from cluster_addon import SETTINGS, Addon
from kubectl import Kubectl


def test_claims_are_refused_where_the_cluster_has_none_before_anything_changes(
    cluster: Kubectl, enabled: Addon, image: str
) -> None:
    version = cluster.get("node")["items"][0]["status"]["nodeInfo"]["kubeletVersion"].removeprefix("v")
    if enabled("enable", "--publisher=dra", "--dry-run", "-o", "none").code == 0:
        pytest.skip(f"Kubernetes {version} has them here: test_dra.py uses them")
    before = cluster.get("configmap", "confcom-addon", "-n", "confcom-system")["metadata"]["resourceVersion"]
    words = [word for word in SETTINGS if not word.startswith("--publisher")]
    for asked in (["--dry-run"], []):
        outcome = enabled("enable", *words, "--publisher=dra", f"--image={image}", *asked)
        assert outcome.code == 2
        assert re.search(rf"this cluster(,| is) Kubernetes {version}", outcome.err)
        assert "--publisher auto" in outcome.err
    after = cluster.get("configmap", "confcom-addon", "-n", "confcom-system")["metadata"]["resourceVersion"]
    assert after == before
