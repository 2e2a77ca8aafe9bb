"""EPC in the node's status on a real API server and kubelet, with the device plugin alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import EPC, job, one_container
from cluster_plugin import NAMESPACE, ClusterPlugin, forget_devices, own_cluster, restart_kubelet
from kubectl import Kubectl

ENCLAVE = "sgx.intel.com/enclave"
SHOW = "echo MIB=$SGX_EPC_MIB; ls /dev/sgx_enclave /dev/sgx/enclave /dev/sgx_provision 2>&1; true"
LARGE = ("--simulated-epc", "32Gi,32Gi")


@pytest.fixture(scope="module")
def plugin(cluster: Kubectl, addon: Addon, image: str) -> Iterator[ClusterPlugin]:
    """The plugin on a node of 64 GiB, and the add-on out of its way."""
    addon("disable", "-o", "none")
    home = own_cluster(cluster)
    if home is not None:
        forget_devices(home, cluster)
    found = ClusterPlugin(cluster, image)
    found.prepare()
    found.start(*LARGE)
    yield found
    found.remove()
    withdraw(found)


def withdraw(plugin: ClusterPlugin) -> None:
    """Delete the amount: after its plugin has ended for good, it stays in the status."""
    gone = json.dumps({"status": {"capacity": {EPC: None}, "allocatable": {EPC: None}}})
    plugin.cluster("patch", "node", plugin.node, "--subresource=status", "--type=merge", "-p", gone)


def reset(plugin: ClusterPlugin, amount: str | None) -> None:
    patch = json.dumps({"status": {"capacity": {EPC: amount}, "allocatable": {EPC: amount}}})
    plugin.cluster("patch", "node", plugin.node, "--subresource=status", "--type=merge", "-p", patch)


def kubelet_writes(plugin: ClusterPlugin) -> None:
    """Have the kubelet write its node's status, by a change that it puts right."""
    patch = json.dumps({"status": {"nodeInfo": {"kernelVersion": "changed"}}})
    plugin.cluster("patch", "node", plugin.node, "--subresource=status", "--type=merge", "-p", patch)

    def is_right() -> bool:
        found = plugin.cluster.get("node", plugin.node)["status"]["nodeInfo"]["kernelVersion"]
        return str(found) != "changed"

    plugin.cluster.wait("the kubelet's status", is_right)


def both(mib: int) -> dict[str, Any]:
    return {"limits": {EPC: mib, ENCLAVE: 1}}


@pytest.mark.promise("M2")
@pytest.mark.complaint("kubernetes #115190")
def test_the_amount_appears_and_comes_back_whoever_resets_it(plugin: ClusterPlugin, cluster: Kubectl) -> None:
    cluster.wait("the amount", lambda: plugin.amounts().get(EPC) == "65536")
    assert plugin.amounts("capacity")[EPC] == "65536"
    cluster.wait("the slots", lambda: plugin.amounts().get(ENCLAVE) == "110")
    labels = cluster.get("node", plugin.node)["metadata"]["labels"]
    assert labels["confcom.dev/sgx-epc-mib"] == "65536"
    for amount in ("0", "7", None):
        reset(plugin, amount)
        cluster.wait("the amount again", lambda: plugin.amounts().get(EPC) == "65536")
    # The kubelet writes its own status at an interval and keeps what is not its own: the plugin has nothing to repair.
    before = plugin.log().count('"epc.published"')
    kubelet_writes(plugin)
    assert plugin.amounts()[EPC] == "65536"
    assert plugin.log().count('"epc.published"') == before


@pytest.mark.promise("M3")
def test_a_pod_with_amount_and_slot_gets_the_device_once(
    plugin: ClusterPlugin, run: Callable[..., str], image: str
) -> None:
    log = run(job("large", "e2e", one_container(image, "sh", "-c", SHOW, resources=both(40_000))))
    assert "/dev/sgx_enclave\n" in log
    assert "/dev/sgx/enclave\n" in log
    assert "cannot access '/dev/sgx_provision'" in log


@pytest.mark.promise("M10")
def test_no_other_node_can_be_written_and_nothing_but_the_status(plugin: ClusterPlugin, cluster: Kubectl) -> None:
    """The plugin works with rights on its own node alone, so no more than these need be given."""
    who = f"--as=system:serviceaccount:{NAMESPACE}:plugin"

    def may(*words: str) -> str:
        return cluster.attempt("auth", "can-i", *words, who).out.strip()

    assert may("patch", f"nodes/{plugin.node}", "--subresource=status") == "yes"
    assert may("patch", "nodes/another", "--subresource=status") == "no"
    assert may("patch", f"nodes/{plugin.node}") == "no"
    assert may("list", "nodes") == "no"
    assert '"outcome":"failed"' not in plugin.log()


@pytest.mark.promise("M2")
def test_a_restarted_kubelet_keeps_the_amount_and_takes_the_slots_again(
    plugin: ClusterPlugin, cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the kubelet of this cluster is not ours to restart")
    restart_kubelet(home)
    cluster.wait("the slots", lambda: plugin.amounts().get(ENCLAVE) == "110")
    cluster.wait("the amount", lambda: plugin.amounts().get(EPC) == "65536")
    run(job("after", "e2e", one_container(image, "sh", "-c", SHOW, resources=both(100))))


@pytest.mark.promise("M3")
def test_on_a_small_node_the_same_pod_gets_the_same_device_from_two_resources(
    plugin: ClusterPlugin, cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    """Each resource brings the device here; the kubelet must not mount it twice."""
    plugin.start("--simulated-epc", "168Mi")
    cluster.wait("the units", lambda: plugin.amounts().get(EPC) == "168")
    log = run(job("small", "e2e", one_container(image, "sh", "-c", f"{SHOW}; cat /proc/mounts", resources=both(40))))
    assert "MIB=40\n" in log
    assert log.count(" /dev/sgx_enclave ") == 1
    assert log.count(" /dev/sgx/enclave ") == 1
    log = run(job("amount", "e2e", one_container(image, "sh", "-c", SHOW, resources={"limits": {EPC: 40}})))
    assert "/dev/sgx_enclave\n" in log


@pytest.mark.claims
@pytest.mark.promise("M2")
def test_claims_take_an_amount_back_that_the_status_still_offers(plugin: ClusterPlugin, cluster: Kubectl) -> None:
    reset(plugin, "65536")  # as a plugin left it that published the node's status
    plugin.start(*LARGE, "--publisher", "dra")
    cluster.wait("nothing of it", lambda: plugin.amounts().get(EPC, "0") == "0")
    kubelet_writes(plugin)
    assert plugin.amounts().get(EPC, "0") == "0"
