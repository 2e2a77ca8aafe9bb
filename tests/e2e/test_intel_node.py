"""The add-on as it is for real SGX nodes, on one that looks like it: devices, NUMA nodes, and a label that lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import job, limits, one_container, pod
from cluster_plugin import forget_devices, own_cluster
from kubectl import ADDON_NAMESPACE, Kubectl
from sgx_on_node import GROUP, MIB_PER_NUMA_NODE, NUMBER, set_mode, sgx_on_node, start_kubelet_again

BOTH = 2 * MIB_PER_NUMA_NODE
INTEL = ("--platform=intel", "--publisher=devices", "--disable-sgxquotehelper", "--provision-grants=")
LOOK = """
import mmap, os, sys
for path in sys.argv[1:]:
    try:
        status = os.stat(path)
        descriptor = os.open(path, os.O_RDWR)
        mmap.mmap(descriptor, 4096).close()
        print(path, os.major(status.st_rdev), os.minor(status.st_rdev), status.st_gid, "opened")
    except OSError as error:
        print(path, error.strerror)
"""
SHOWN = " ".join(map(str, NUMBER))
DEVICES = ("/dev/sgx_enclave", "/dev/sgx/enclave", "/dev/sgx_provision", "/dev/sgx/provision")


@pytest.fixture(scope="module")
def home(cluster: Kubectl, addon: Addon) -> Path:
    found = own_cluster(cluster)
    if found is None:
        pytest.skip("the node of this cluster is not ours to change")
    assert addon("disable", "--yes", "-o", "none").code == 0
    # What an earlier plugin offered stays in the node's capacity for five minutes otherwise.
    forget_devices(found, cluster)
    return found


@pytest.fixture(scope="module")
def intel_node(home: Path, cluster: Kubectl, addon: Addon) -> Iterator[Addon]:
    """The add-on without simulation, on a node that shows SGX, with a kubelet that keeps to NUMA nodes."""
    with sgx_on_node(home):
        start_kubelet_again(home, "--topology-manager-policy=single-numa-node")
        outcome = addon("enable", *INTEL, f"--image={addon.image}", "-o", "none")
        assert outcome.code == 0, outcome.err
        cluster.wait("EPC to be allocatable", lambda: addon.allocatable() == BOTH)
        yield addon
        assert addon("disable", "--purge", "--yes", "-o", "none").code == 0
    forget_devices(home, cluster)


@pytest.mark.complaint("intel-device-plugins #739", "intel-device-plugins #1611", "intel-device-plugins #1344")
@pytest.mark.complaint("confidential-containers #224")
def test_a_label_on_a_node_without_sgx_brings_no_epc_and_a_reason(home: Path, cluster: Kubectl, addon: Addon) -> None:
    """Before the node is made to look otherwise: this machine has no SGX, and is labelled as one that has."""
    if Path("/dev/sgx_enclave").exists():
        pytest.skip("this machine has SGX")
    reason = "neither /dev/sgx_enclave nor /dev/sgx/enclave is a device"
    outcome = addon.fails("enable", *INTEL, f"--image={addon.image}", saying=reason)
    assert "not ready: sgx-device-plugin 0/1" in outcome.err
    (plugin,) = addon.pods("device-plugin")
    name = plugin["metadata"]["name"]
    absent = [line for line in cluster("logs", name, "-n", ADDON_NAMESPACE).splitlines() if '"sgx.absent"' in line]
    assert len(absent) == 1
    assert plugin["status"]["containerStatuses"][0]["restartCount"] == 0
    status = addon.node()["status"]
    for amounts in (status["capacity"], status["allocatable"]):
        assert amounts.get("kubernetes.azure.com/sgx_epc_mem_in_MiB", "0") == "0"
        assert amounts.get("sgx.intel.com/enclave", "0") == "0"
    assert addon("disable", "--purge", "--yes", "-o", "none").code == 0


@pytest.mark.complaint("azure-docs #71783", "azure-docs #116281")
@pytest.mark.complaint("intel-device-plugins #1526", "intel-device-plugins #1565")
def test_the_true_devices_reach_a_container_under_both_names(
    intel_node: Addon, run: Callable[..., str], image: str
) -> None:
    log = run(job("devices", "e2e", one_container(image, "python3", "-c", LOOK, *DEVICES, resources=limits(10))))
    assert f"/dev/sgx_enclave {SHOWN} 0 opened" in log
    assert f"/dev/sgx/enclave {SHOWN} 0 opened" in log
    assert "/dev/sgx_provision No such file or directory" in log
    assert "/dev/sgx/provision No such file or directory" in log


@pytest.mark.complaint("linux-sgx #996")
def test_a_device_that_the_host_keeps_for_a_group_is_explained_in_the_pod(
    intel_node: Addon, home: Path, run: Callable[..., str], image: str
) -> None:
    set_mode(home, "sgx_enclave", "660")
    command = 'python3 -c "$0" /dev/sgx_enclave; confcom doctor --json || true'
    log = run(job("refused", "e2e", one_container(image, "sh", "-c", command, LOOK, resources=limits(10))))
    assert "/dev/sgx_enclave Permission denied" in log
    checks = {one["id"]: one for one in json.loads(log[log.index("{") :])["checks"]}
    assert checks["device.enclave"]["status"] == "problem"
    assert "0660" in checks["device.enclave"]["found"]
    assert "group" in checks["device.enclave"]["advice"]
    # What the advice names helps.
    spec = one_container(image, "python3", "-c", LOOK, "/dev/sgx_enclave", resources=limits(10))
    spec["securityContext"] = {"supplementalGroups": [0]}
    assert "opened" in run(job("grouped", "e2e", spec))
    set_mode(home, "sgx_enclave", "666")


def _made(cluster: Kubectl, made: Callable[..., Any], image: str, name: str, mib: int) -> Any:
    """A pod of so much EPC, when it runs or was rejected; its status."""
    made(pod(name, "e2e", one_container(image, "sleep", "600", resources=limits(mib))))

    def decided() -> Any:
        status = cluster.get("pod", name, "-n", "e2e")["status"]
        return status if status["phase"] in ("Running", "Failed") else None

    return cluster.wait(f"{name} to run, or not", decided, 60)


@pytest.mark.complaint("intel-device-plugins #1141", "kubernetes #112234")
def test_a_kubelet_that_keeps_to_one_numa_node_runs_what_fits_one(
    intel_node: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    """The webhook adds a slot of the enclave device, which has no place: it must not make the two unfit together."""
    for name, mib in (("first", 40), ("second", 40), ("small", 20)):
        assert _made(cluster, made, image, name, mib)["phase"] == "Running", name
    # Only what is larger than every NUMA node is what this policy is there to reject, and it is said why.
    too_large = _made(cluster, made, image, "large", 28)
    assert (too_large["phase"], too_large["reason"]) == ("Failed", "TopologyAffinityError")


@pytest.mark.complaint("intel-device-plugins #1141", "kubernetes #112234")
@pytest.mark.parametrize("policy", ["restricted", "best-effort"])
def test_other_policies_run_what_needs_both(
    intel_node: Addon, home: Path, cluster: Kubectl, made: Callable[..., Any], image: str, policy: str
) -> None:
    start_kubelet_again(home, f"--topology-manager-policy={policy}")
    cluster.wait("EPC to be allocatable", lambda: intel_node.allocatable() == BOTH)
    assert _made(cluster, made, image, f"both-{policy}", MIB_PER_NUMA_NODE + 16)["phase"] == "Running"
    assert _made(cluster, made, image, f"one-{policy}", 40)["phase"] == "Running"


@pytest.mark.complaint("linux-sgx #583", "linux-sgx #725")
def test_the_provisioning_device_needs_its_group_and_not_root(
    intel_node: Addon, run: Callable[..., str], image: str
) -> None:
    """As the quote helper uses it: user 65532, no capabilities, and the group of the device."""
    assert intel_node("update", "--provision-grants=e2e/*", "-o", "none").code == 0
    spec = one_container(
        image, "python3", "-c", LOOK, *DEVICES, resources=limits(4, **{"sgx.intel.com/provision": "1"})
    )
    spec["containers"][0]["securityContext"] = {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
    spec["securityContext"] = {"supplementalGroups": [GROUP]}
    log = run(job("provision", "e2e", spec))
    assert f"/dev/sgx_provision {SHOWN} {GROUP} opened" in log
    assert f"/dev/sgx/provision {SHOWN} {GROUP} opened" in log
