"""Mixed node pools: SGX nodes beside ordinary and Windows ones, as the source pages say (M1, M4, M14)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import limits, one_container, pod
from kubectl import ADDON_NAMESPACE, Kubectl
from stand_in_nodes import stand_in_nodes

PLAIN, WINDOWS = "zz-plain", "zz-windows"
POOLS = {
    PLAIN: {"kubernetes.io/os": "linux", "agentpool": "plain"},
    WINDOWS: {"kubernetes.io/os": "windows", "agentpool": "windows"},
}

COMPONENTS = ("--enable-metrics", "--enable-collateral", "--webhook-replicas=2")


@pytest.fixture(scope="module")
def pools(cluster: Kubectl, addon: Addon) -> Iterator[Addon]:
    """The add-on with all of its components, and the other pools beside it; a pod on their nodes would never run."""
    addon.enable(*COMPONENTS)
    with stand_in_nodes(cluster, POOLS):
        yield addon


def _node(cluster: Kubectl, name: str) -> str:
    """Where the scheduler put a pod."""
    found: str = cluster.wait(
        f"pod {name} to be placed", lambda: cluster.get("pod", name, "-n", "e2e")["spec"].get("nodeName")
    )
    return found


@pytest.mark.promise("M1")
@pytest.mark.promise("M14")
def test_no_pod_of_the_addon_is_on_a_node_without_sgx_but_what_serves_the_cluster(
    pools: Addon, cluster: Kubectl
) -> None:
    sgx = pools.node()["metadata"]["name"]
    daemons = cluster.items("daemonsets", "-n", ADDON_NAMESPACE)
    assert {daemon["status"]["desiredNumberScheduled"] for daemon in daemons} == {1}
    for found in cluster.items("pods", "-n", ADDON_NAMESPACE):
        node = found["spec"].get("nodeName")
        assert node != WINDOWS, found["metadata"]["name"]
        if any(owner["kind"] == "DaemonSet" for owner in found["metadata"]["ownerReferences"]):
            assert node == sgx, found["metadata"]["name"]


@pytest.mark.promise("M14")
def test_what_comes_anew_does_not_land_on_windows_either(pools: Addon, cluster: Kubectl) -> None:
    """The Windows node is the emptiest, and has no taint: only what the pods say keeps them away."""
    deployments = cluster.items("deployments", "-n", ADDON_NAMESPACE)
    assert {"sgx-webhook"} < {deployment["metadata"]["name"] for deployment in deployments}
    for workload in (*deployments, *cluster.items("daemonsets", "-n", ADDON_NAMESPACE)):
        template = dict(workload["spec"]["template"])
        metadata = {"name": f"again-{workload['metadata']['name']}", "namespace": ADDON_NAMESPACE}
        copy = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        # Only placement is asked about: host ports and amounts of the running one must not decide.
        for container in copy["spec"].get("initContainers", []) + copy["spec"]["containers"]:
            container.pop("ports", None)
            container.pop("resources", None)
        selector = copy["spec"].pop("nodeSelector", {})
        terms = copy["spec"].pop("affinity", {}).get("nodeAffinity", {})
        copy["spec"] = {"nodeSelector": selector, "affinity": {"nodeAffinity": terms}} | one_container("none", "true")
        cluster.apply(copy)
        try:
            placed = cluster.wait(
                "it to be placed",
                lambda name=metadata["name"]: cluster.get("pod", name, "-n", ADDON_NAMESPACE)["spec"].get("nodeName"),
            )
            assert placed != WINDOWS, workload["metadata"]["name"]
        finally:
            cluster("delete", "pod", metadata["name"], "-n", ADDON_NAMESPACE, "--grace-period=0", "--force")


@pytest.mark.promise("M4")
def test_a_limit_alone_and_a_selector_alone_find_the_sgx_node(
    pools: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    sgx = pools.node()["metadata"]["name"]
    made(pod("by-limit", "e2e", one_container(image, "sleep", "600", resources=limits(10))))
    by_selector = one_container(image, "sleep", "600") | {"nodeSelector": {"confcom.dev/sgx": "true"}}
    made(pod("by-selector", "e2e", by_selector))
    assert (_node(cluster, "by-limit"), _node(cluster, "by-selector")) == (sgx, sgx)


@pytest.mark.promise("M1")
def test_ordinary_pods_of_the_other_pools_are_left_alone(pools: Addon, cluster: Kubectl, image: str) -> None:
    for name in (PLAIN, WINDOWS):
        spec = one_container(image, "sleep", "600") | {"nodeSelector": {"agentpool": POOLS[name]["agentpool"]}}
        cluster.apply(pod(f"on-{name}", "e2e", spec))
        try:
            assert _node(cluster, f"on-{name}") == name
            seen = cluster.get("pod", f"on-{name}", "-n", "e2e")
        finally:
            # No kubelet would end it.
            cluster("delete", "pod", f"on-{name}", "-n", "e2e", "--grace-period=0", "--force")
        assert seen["spec"]["containers"][0]["resources"] == {}
        assert "confcom.dev/uses-sgx" not in seen["metadata"]["labels"]
        status = cluster.get("node", name)["status"]
        assert not [resource for resource in status["allocatable"] if "sgx" in resource]


@pytest.mark.promise("M4")
def test_a_selector_of_another_pool_beside_a_limit_waits_with_the_reason(
    pools: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    spec = one_container(image, "sleep", "600", resources=limits(10)) | {"nodeSelector": {"agentpool": "plain"}}
    made(pod("torn", "e2e", spec))
    reason = cluster.wait("the reason", lambda: _unschedulable(cluster, "torn"))
    assert "Insufficient kubernetes.azure.com/sgx_epc_mem_in_MiB" in reason


def _unschedulable(cluster: Kubectl, name: str) -> str | None:
    conditions = cluster.get("pod", name, "-n", "e2e")["status"].get("conditions", [])
    found = [c["message"] for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"]
    return found[0] if found else None
