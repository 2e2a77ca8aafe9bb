"""EPC by claims on a real kubelet, scheduler and runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import EPC, one_container, pod
from cluster_plugin import NAMESPACE, ClusterPlugin, own_cluster, restart_kubelet
from confcom.protocols.epc import EPC_CLASS, PROVISION_CLASS, device_class
from kubectl import Kubectl

pytestmark = pytest.mark.claims
SHOW = "echo MIB=$SGX_EPC_MIB; ls /dev/sgx_enclave /dev/sgx/enclave /dev/sgx_provision 2>&1; exec sleep 600"
BOTH = ("--publisher", "dra", "--simulated-epc", "1Gi,512Mi")


@pytest.fixture(scope="module")
def plugin(cluster: Kubectl, addon: Addon, image: str) -> Iterator[ClusterPlugin]:
    """The driver with two NUMA nodes of 1 GiB and 512 MiB, and the add-on out of its way."""
    addon("disable", "-o", "none")
    found = ClusterPlugin(cluster, image)
    found.prepare()
    cluster.apply(device_class(EPC_CLASS, "epc"), device_class(PROVISION_CLASS, "provision"))
    found.start(*BOTH)
    yield found
    found.remove()
    cluster("delete", "deviceclass", EPC_CLASS, PROVISION_CLASS, "--ignore-not-found")


@pytest.fixture
def claimed(made: Callable[..., Any], image: str) -> Callable[..., str]:
    """Make a pod with a claim; returns its name."""

    def make(name: str, amount: str | None, *, namespace: str = "e2e", **request: Any) -> str:
        exactly = {"deviceClassName": EPC_CLASS} | request
        if amount is not None:
            exactly["capacity"] = {"requests": {"epc": amount}}
        made(
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "ResourceClaimTemplate",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"spec": {"devices": {"requests": [{"name": "epc", "exactly": exactly}]}}},
            }
        )
        spec = one_container(image, "sh", "-c", SHOW, resources={"claims": [{"name": "epc"}]})
        made(pod(name, namespace, spec | {"resourceClaims": [{"name": "epc", "resourceClaimTemplateName": name}]}))
        return name

    return make


def slices(cluster: Kubectl) -> list[Any]:
    return [one for one in cluster.items("resourceslices") if one["spec"]["driver"] == "sgx.confcom.dev"]


def phase(cluster: Kubectl, name: str, namespace: str = "e2e") -> str:
    found: str = cluster.get("pod", name, "-n", namespace)["status"].get("phase", "")
    return found


def running(cluster: Kubectl, name: str) -> str:
    """The log of a pod that runs."""
    cluster.wait(f"{name} to run", lambda: phase(cluster, name) == "Running")
    return str(cluster.wait("its log", lambda: cluster("logs", name, "-n", "e2e")))


def unschedulable(cluster: Kubectl, name: str) -> str | None:
    for condition in cluster.get("pod", name, "-n", "e2e")["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message: str = condition["message"]
            return message
    return None


def results(cluster: Kubectl, name: str) -> list[Any]:
    claims = [
        claim
        for claim in cluster.items("resourceclaims", "-n", "e2e")
        if any(owner["name"] == name for owner in claim["metadata"].get("ownerReferences", []))
    ]
    found: list[Any] = claims[0]["status"]["allocation"]["devices"]["results"]
    return found


@pytest.mark.promise("M2")
def test_pods_share_a_numa_node_by_bytes_and_what_does_not_fit_waits_with_the_reason(
    plugin: ClusterPlugin, cluster: Kubectl, claimed: Callable[..., str]
) -> None:
    one, two = claimed("dra-one", "300Mi"), claimed("dra-two", "524288000")
    assert "MIB=300\n" in running(cluster, one)
    log = running(cluster, two)
    assert "MIB=500\n" in log
    assert "/dev/sgx_enclave\n" in log
    assert "/dev/sgx/enclave\n" in log
    assert "cannot access '/dev/sgx_provision'" in log
    shares = [*results(cluster, one), *results(cluster, two)]
    assert {share["device"] for share in shares} == {"epc-node0"}
    assert len({share["shareID"] for share in shares}) == 2
    # 724 MiB are left, but no NUMA node has more than 512 of them.
    late = claimed("dra-late", "600Mi")
    reason = cluster.wait("the reason", lambda: unschedulable(cluster, late))
    assert "cannot allocate all claims" in reason
    cluster("delete", "pod", two, "-n", "e2e", "--wait")
    assert "MIB=600\n" in running(cluster, late)
    # Nothing of it is counted a second time.
    assert plugin.amounts().get(EPC, "0") == "0"
    assert "SGX_EPC_MIB" not in plugin.log()


@pytest.mark.promise("M3")
def test_a_part_of_a_mebibyte_is_rounded_up_and_no_amount_is_the_least(
    plugin: ClusterPlugin, cluster: Kubectl, claimed: Callable[..., str]
) -> None:
    assert "MIB=3\n" in running(cluster, claimed("dra-odd", "2560Ki"))
    assert "MIB=1\n" in running(cluster, claimed("dra-least", None))


@pytest.mark.promise("M10")
def test_the_provisioning_device_is_not_to_be_had_and_then_only_in_its_namespace(
    plugin: ClusterPlugin, cluster: Kubectl, claimed: Callable[..., str], made: Callable[..., Any]
) -> None:
    curious = claimed("dra-curious", None, deviceClassName=PROVISION_CLASS)
    assert "cannot allocate all claims" in cluster.wait("the reason", lambda: unschedulable(cluster, curious))
    plugin.start(*BOTH, "--provision-limit", "2", "--provision-namespaces", NAMESPACE)
    granted = claimed("dra-granted", None, namespace=NAMESPACE, deviceClassName=PROVISION_CLASS)
    cluster.wait("the granted pod", lambda: phase(cluster, granted, NAMESPACE) == "Running")
    assert "/dev/sgx_provision\n" in cluster("logs", granted, "-n", NAMESPACE)
    events = ("events", "-n", "e2e", "--field-selector", f"involvedObject.name={curious}")
    refused = "claims of namespace e2e may not have the provisioning device"
    cluster.wait(
        "the refusal", lambda: any(refused in event["message"] for event in cluster.items(*events)), seconds=120
    )
    assert phase(cluster, curious) == "Pending"


def test_pods_outlive_the_plugin_and_can_be_let_go_by_the_next(
    plugin: ClusterPlugin, cluster: Kubectl, claimed: Callable[..., str]
) -> None:
    plugin.start(*BOTH)
    kept = claimed("dra-kept", "100Mi")
    running(cluster, kept)
    plugin.kill()
    plugin.start(*BOTH)
    assert phase(cluster, kept) == "Running"
    assert len(slices(cluster)) == 1
    assert "MIB=924\n" in running(cluster, claimed("dra-rest", "924Mi"))
    cluster("delete", "pod", kept, "-n", "e2e", "--wait")
    assert '"claim.unprepared"' in cluster.wait("the claim to be let go", plugin.log)


@pytest.mark.promise("M2")
def test_a_slice_that_is_deleted_comes_back(plugin: ClusterPlugin, cluster: Kubectl) -> None:
    before = slices(cluster)[0]["metadata"]["uid"]
    cluster("delete", "resourceslices", "--all")
    cluster.wait("a new slice", lambda: [s for s in slices(cluster) if s["metadata"]["uid"] != before], seconds=20)


@pytest.mark.promise("M2")
def test_a_kubelet_that_restarts_finds_driver_claims_and_devices_again(
    plugin: ClusterPlugin, cluster: Kubectl, claimed: Callable[..., str]
) -> None:
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the kubelet of this cluster is not ours to restart")
    held = claimed("dra-held", "1Gi")
    running(cluster, held)
    restart_kubelet(home)
    cluster.wait("the devices", lambda: slices(cluster) and len(slices(cluster)[0]["spec"]["devices"]) == 2, 60)
    assert phase(cluster, held) == "Running"
    assert "MIB=512\n" in running(cluster, claimed("dra-after", "512Mi"))
    late = claimed("dra-too-much", "1Mi")
    assert "cannot allocate all claims" in cluster.wait("the reason", lambda: unschedulable(cluster, late))
    cluster("delete", "pod", held, "-n", "e2e", "--wait")
    assert "MIB=1\n" in running(cluster, late)
