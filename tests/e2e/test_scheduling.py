"""EPC as one more resource: it places pods, is shared, and leaves everybody else alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import job, limits, one_container, pod
from kubectl import Kubectl, Outcome

pytestmark = pytest.mark.usefixtures("enabled")


def _phase(cluster: Kubectl, name: str) -> str:
    phase: str = cluster.get("pod", name, "-n", "e2e")["status"].get("phase", "")
    return phase


def _unschedulable(cluster: Kubectl, name: str) -> str | None:
    for condition in cluster.get("pod", name, "-n", "e2e")["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message: str = condition["message"]
            return message
    return None


@pytest.mark.promise("M5")
@pytest.mark.promise("M4")
@pytest.mark.complaint("intel-device-plugins #1344")
def test_a_pod_over_what_is_left_waits_with_the_reason_and_runs_when_there_is_room(
    cluster: Kubectl, made: Callable[..., Any], enabled: Addon, image: str
) -> None:
    # 168 MiB, beside those of the helper.
    made(pod("large", "e2e", one_container(image, "sleep", "600", resources=limits(155))))
    cluster.wait("the large pod", lambda: _phase(cluster, "large") == "Running")
    made(pod("waiting", "e2e", one_container(image, "sleep", "600", resources=limits(15))))
    reason = cluster.wait("the reason", lambda: _unschedulable(cluster, "waiting"))
    assert "Insufficient kubernetes.azure.com/sgx_epc_mem_in_MiB" in reason
    assert _phase(cluster, "waiting") == "Pending"
    cluster("delete", "pod", "large", "-n", "e2e", "--wait")
    cluster.wait("the waiting pod", lambda: _phase(cluster, "waiting") == "Running")


@pytest.mark.promise("M1")
def test_an_ordinary_container_on_the_sgx_node_gets_nothing_of_it(
    cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    spec = one_container(image, "sh", "-c", "ls -d /dev/sgx* /var/run/aesmd; env; true")
    log = run(job("ordinary", "e2e", spec))
    assert "SGX" not in log
    assert "cannot access '/dev/sgx*'" in log
    assert "cannot access '/var/run/aesmd'" in log
    seen = cluster.items("pods", "-n", "e2e", "-l", "app=ordinary")[0]["spec"]["containers"][0]
    assert seen["resources"] == {}
    assert [mount["name"] for mount in seen["volumeMounts"]] == [seen["volumeMounts"][0]["name"]]


@pytest.mark.promise("M2")
def test_every_container_of_a_pod_gets_its_own_part(
    cluster: Kubectl, made: Callable[..., Any], enabled: Addon, image: str
) -> None:
    spec = one_container(image, "sleep", "600", resources=limits(60))
    spec["containers"].append(spec["containers"][0] | {"name": "second"})
    spec["initContainers"] = [
        {"name": "first", "image": image, "command": ["test", "-e", "/dev/sgx_enclave"], "resources": limits(100)}
    ]
    made(pod("several", "e2e", spec))
    cluster.wait("the pod", lambda: _phase(cluster, "several") == "Running")
    for container in ("application", "second"):
        cluster("exec", "-n", "e2e", "several", "-c", container, "--", "test", "-e", "/dev/sgx_enclave")
    # 120 of the 168 are in use: the init container's 100 were lent.
    made(pod("beside", "e2e", one_container(image, "sleep", "600", resources=limits(48))))
    cluster.wait("the pod beside it", lambda: _phase(cluster, "beside") == "Running")


@pytest.mark.promise("M2")
@pytest.mark.parametrize("amount", ["0.5", "-1"])
def test_an_amount_that_is_no_whole_number_is_refused(cluster: Kubectl, image: str, amount: str) -> None:
    spec = one_container(image, "true", resources=limits(amount))
    refused = cluster.attempt("create", "-f", "-", given=json.dumps(pod("amount", "e2e", spec)))
    assert refused.code != 0
    assert "kubernetes.azure.com/sgx_epc_mem_in_MiB" in refused.err


@pytest.mark.promise("M5")
def test_a_limit_range_holds_for_every_dialect(
    enabled: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    """It fills in its default before the webhook is asked, and judges what the webhook has made of the pod."""
    epc = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
    ratio = {"maxLimitRequestRatio": {epc: "1"}}
    amounts = {"type": "Container", "default": {epc: "10"}, "defaultRequest": {epc: "10"}, "max": {epc: "50"}} | ratio
    metadata = {"name": "epc", "namespace": "e2e"}
    judged = [amounts, {"type": "Pod"} | ratio]
    made({"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": {"limits": judged}})
    dialects = {epc: "{}", "sgx.intel.com/epc": "{}Mi", "alibabacloud.com/sgx_epc_MiB": "{}"}

    def tried(limits: dict[str, str]) -> Outcome:
        thing = pod("limited", "e2e", one_container(image, "true", resources={"limits": limits}))
        return cluster.attempt("create", "--dry-run=server", "-f", "-", "-o", "json", given=json.dumps(thing))

    def amount(outcome: Outcome) -> str:
        assert outcome.code == 0, outcome.err
        return str(json.loads(outcome.out)["spec"]["containers"][0]["resources"]["limits"][epc])

    cluster.wait("the default", lambda: amount(tried({"cpu": "1"})) == "10")
    for name, form in dialects.items():
        assert amount(tried({name: form.format(20)})) == "20"
        refused = tried({name: form.format(60)})
        assert refused.code != 0
        assert "maximum" in refused.err
