"""Volumes that an operator makes by hand, in a cluster without storage classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster_addon import Addon
from cluster_plugin import own_cluster
from kubectl import Kubectl

CLASS = "made-by-hand"


@contextmanager
def volume_by_hand(addon: Addon, cluster: Kubectl, name: str) -> Iterator[str]:
    """A volume in a folder of the node, while the block runs; the word is for options such as `--…-storage`."""
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("a folder of a node is needed, which only the cluster of `./dev e2e` lets a test make")
    path = f"/var/lib/confcom/{name}"
    (home / f"data/node{path}").mkdir(parents=True, exist_ok=True)
    node = addon.node()["metadata"]["labels"]["kubernetes.io/hostname"]
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": f"{CLASS}-{name}",
                "local": {"path": path},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
            },
        }
    )
    try:
        yield f"{CLASS}-{name}/512Mi"
    finally:
        cluster("delete", "persistentvolume", name, "--wait=false")
