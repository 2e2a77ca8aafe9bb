"""SGX pods scale on CPU and memory like any others, within what EPC there is (M5, M14)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import limits, one_container
from cluster_plugin import own_cluster
from kubectl import Kubectl
from resource_metrics import resource_metrics

NAME = "scaled"
EACH, FIT = 70, 2
"""MiB of EPC of each replica, and how many of them a node of 168 MiB has room for, beside the helper."""


@pytest.fixture(scope="module")
def measured(cluster: Kubectl, addon: Addon) -> Iterator[Addon]:
    """The add-on on a cluster that measures pods."""
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the node of this cluster is not ours to change")
    addon.enable()
    with resource_metrics(cluster, home):
        yield addon


def _deployment(image: str, command: str) -> dict[str, Any]:
    spec = one_container(image, "sh", "-c", command, resources=limits(EACH))
    # A request is what utilisation is measured against.
    spec["containers"][0]["resources"]["requests"] = {"cpu": "10m", "memory": "16Mi"}
    labels = {"app": NAME}
    template = {"metadata": {"labels": labels}, "spec": spec | {"restartPolicy": "Always"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": "e2e"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }


def _autoscaler(resource: str) -> dict[str, Any]:
    target = {"type": "Utilization", "averageUtilization": 50}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": NAME, "namespace": "e2e"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
            "minReplicas": 1,
            "maxReplicas": FIT + 1,
            "metrics": [{"type": "Resource", "resource": {"name": resource, "target": target}}],
        },
    }


BUSY = {
    "cpu": "while :; do for i in 1 2 3 4 5 6 7 8; do sha256sum /usr/bin/python3 >/dev/null; done; sleep 0.3; done",
    "memory": "exec python3 -c 'import time; held = b\"x\" * (64 << 20); time.sleep(3600)'",
}


@pytest.mark.promise("M14")
@pytest.mark.promise("M5")
@pytest.mark.parametrize("resource", ["cpu", "memory"])
def test_they_scale_on_cpu_and_memory_and_wait_where_epc_ends(
    measured: Addon, cluster: Kubectl, made: Callable[..., Any], image: str, resource: str
) -> None:
    made(_deployment(image, BUSY[resource]))
    made(_autoscaler(resource))
    wanted = cluster.wait("the autoscaler to want more", lambda: _wanted(cluster), 240)
    assert wanted == FIT + 1
    pods = cluster.wait("all replicas to be settled", lambda: _settled(cluster))
    running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
    (waiting,) = [pod for pod in pods if pod["status"]["phase"] == "Pending"]
    assert len(running) == FIT
    assert "Insufficient kubernetes.azure.com/sgx_epc_mem_in_MiB" in json.dumps(waiting["status"]["conditions"])


def _wanted(cluster: Kubectl) -> int | None:
    wanted: int = cluster.get("hpa", NAME, "-n", "e2e")["status"].get("desiredReplicas", 0)
    return wanted if wanted > FIT else None


def _settled(cluster: Kubectl) -> list[Any] | None:
    pods = [pod for pod in cluster.items("pods", "-n", "e2e", "-l", f"app={NAME}") if _looked_at(pod)]
    return pods if len(pods) == FIT + 1 else None


def _looked_at(pod: Any) -> bool:
    placed = any(c["type"] == "PodScheduled" and c["status"] == "False" for c in pod["status"].get("conditions", []))
    return "deletionTimestamp" not in pod["metadata"] and (pod["status"]["phase"] == "Running" or placed)
