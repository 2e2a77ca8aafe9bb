"""On a node without free EPC the quote helper is replaced, and no pod takes its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import limits, one_container, pod
from cluster_load import Load
from kubectl import ADDON_NAMESPACE, Kubectl

PRIORITY = "e2e-above-all"


@pytest.fixture
def load(cluster: Kubectl, enabled: Addon, image: str) -> Iterator[Load]:
    found = Load.start(cluster, image)
    yield found
    found.end()


def phase(cluster: Kubectl, name: str) -> str:
    return str(cluster.get("pod", name, "-n", "e2e")["status"].get("phase"))


@pytest.mark.promise("M7")
@pytest.mark.promise("M10")
@pytest.mark.complaint("intel-device-plugins #1344")
def test_a_full_node_is_updated_and_its_helper_is_not_preempted(
    cluster: Kubectl, enabled: Addon, load: Load, made: Callable[..., Any], image: str
) -> None:
    rest = enabled.allocatable() - 10
    made(pod("filler", "e2e", one_container(image, "sleep", "3600", resources=limits(rest))))
    cluster.wait("the filler", lambda: phase(cluster, "filler") == "Running")

    (before,) = enabled.pods("quote-helper")
    cluster("rollout", "restart", "daemonset/sgx-quote-helper", "-n", ADDON_NAMESPACE)
    cluster.rollout("daemonset", "sgx-quote-helper")
    (after,) = enabled.pods("quote-helper")
    assert before["metadata"]["uid"] != after["metadata"]["uid"]
    load.more()

    above = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": PRIORITY}}
    made(above | {"value": 2_000_000})
    tenant = one_container(image, "sleep", "3600", resources=limits(rest)) | {"priorityClassName": PRIORITY}
    made(pod("tenant", "e2e", tenant))
    cluster.wait("the tenant", lambda: phase(cluster, "tenant") == "Running")
    assert cluster.find("pod", "filler", "-n", "e2e") is None  # what it did preempt
    assert [one["metadata"]["uid"] for one in enabled.pods("quote-helper")] == [after["metadata"]["uid"]]
    load.more()
    assert cluster.wait("figures", load.figures)["failures"] == []
