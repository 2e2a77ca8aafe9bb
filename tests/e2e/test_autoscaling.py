"""HPA scales simulated enclaves on EPC, without Prometheus; it stands still when the metrics API is away (M14)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import limits, one_container
from kubectl import ADDON_NAMESPACE, Kubectl

NAME, NAMESPACE = "enclaves", "e2e"
API = "/apis/custom.metrics.k8s.io/v1beta2"
METRICS = f"{API}/namespaces/{NAMESPACE}"
MIB = 1 << 20
FILES = Path(__file__).resolve().parents[2] / "deploy" / "autoscaling"

pytestmark = pytest.mark.promise("M14")


@pytest.fixture(scope="module")
def scaling(addon: Addon, cluster: Kubectl) -> Iterator[Addon]:
    """The add-on with the metrics API, which is taken away again: later tests delete namespaces."""
    addon.enable("--enable-metrics", "--enable-autoscaling")
    cluster.rollout("deployment", "confcom-metrics-api")
    cluster.wait("the API to be available", lambda: _available(cluster) == "True")
    yield addon
    outcome = addon("update", "--disable-autoscaling", "-o", "none")
    assert outcome.code == 0, outcome.err
    assert cluster.find("apiservice", "v1beta2.custom.metrics.k8s.io") is None


def _available(cluster: Kubectl) -> str:
    found = cluster.find("apiservice", "v1beta2.custom.metrics.k8s.io") or {}
    conditions = found.get("status", {}).get("conditions", [])
    return next((str(one["status"]) for one in conditions if one["type"] == "Available"), "")


def _deployment(image: str, requested: int, held: int) -> dict[str, Any]:
    """Pods with an enclave of `held` MiB, in which tests start further ones."""
    spec = one_container(image, "confcom", "simulate", "hold", "--epc", f"{held}Mi", resources=limits(requested))
    labels = {"app": NAME}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec | {"restartPolicy": "Always"}},
        },
    }


TOTAL = {
    "type": "Object",
    "object": {
        "describedObject": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
        "metric": {"name": "sgx_epc_used_bytes"},
        "target": {"type": "AverageValue", "averageValue": "12Mi"},
    },
}
RATIO = {
    "type": "Pods",
    "pods": {"metric": {"name": "sgx_epc_used_ratio"}, "target": {"type": "AverageValue", "averageValue": "700m"}},
}


def _autoscaler(metric: dict[str, Any], most: int) -> dict[str, Any]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
            "minReplicas": 1,
            "maxReplicas": most,
            "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }


def _pods(cluster: Kubectl) -> list[Any]:
    found = cluster.items("pods", "-n", NAMESPACE, "-l", f"app={NAME}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def _running(cluster: Kubectl, count: int) -> list[Any] | None:
    found = [pod for pod in _pods(cluster) if pod["status"]["phase"] == "Running"]
    return found if len(found) == count else None


def _values(cluster: Kubectl, path: str) -> dict[str, str]:
    outcome = cluster.attempt("get", "--raw", f"{METRICS}/{path}")
    if outcome.code:
        return {}
    return {one["describedObject"]["name"]: one["value"] for one in json.loads(outcome.out)["items"]}


def _load(cluster: Kubectl, pod: str, mib: int) -> None:
    """A further enclave in the pod."""
    command = f"confcom simulate hold --epc {mib}Mi >/dev/null 2>&1 & echo $! > /tmp/load"
    cluster("exec", pod, "-n", NAMESPACE, "--", "sh", "-c", command)


def _active(cluster: Kubectl) -> tuple[str, str]:
    """Whether the autoscaler acts, and what it says."""
    status = cluster.get("hpa", NAME, "-n", NAMESPACE).get("status", {})
    found = [one for one in status.get("conditions", []) if one["type"] == "ScalingActive"]
    return (found[0]["status"], found[0]["message"]) if found else ("", "")


def _seen(cluster: Kubectl, kind: str) -> tuple[str, int, int]:
    """The average that the autoscaler saw at last, the replicas that there were, and those that it wants."""
    status = cluster.get("hpa", NAME, "-n", NAMESPACE)["status"]
    average = status["currentMetrics"][0].get(kind, {}).get("current", {}).get("averageValue", "")
    return average, status["currentReplicas"], status["desiredReplicas"]


@pytest.mark.parametrize("metric", [TOTAL, RATIO], ids=["total", "ratio"])
def test_enclaves_that_fill_their_epc_get_company_and_lose_it_again(
    scaling: Addon, cluster: Kubectl, made: Callable[..., Any], image: str, metric: dict[str, Any]
) -> None:
    made(_deployment(image, requested=20, held=4))
    made(_autoscaler(metric, 6))
    (first,) = cluster.wait("the first pod", lambda: _running(cluster, 1))
    name = first["metadata"]["name"]
    cluster.wait("the autoscaler to see it", lambda: _active(cluster)[0] == "True")
    assert _values(cluster, f"pods/*/sgx_epc_used_ratio?labelSelector=app%3D{NAME}") == {name: "200m"}
    _load(cluster, name, 14)
    second = cluster.wait("a second pod", lambda: _running(cluster, 2))
    cluster.wait(
        "the use of both",
        lambda: _values(cluster, f"deployments.apps/{NAME}/sgx_epc_used_bytes") == {NAME: str(22 * MIB)},
    )
    assert _values(cluster, f"pods/{name}/sgx_epc_used_ratio") == {name: "900m"}
    # It has looked at both, it is enough, and there are no more.
    both = {"object": str(11 * MIB), "pods": "550m"}[metric["type"].lower()]
    cluster.wait("the autoscaler to be content", lambda: _seen(cluster, metric["type"].lower()) == (both, 2, 2))
    assert len(_pods(cluster)) == 2
    for pod in second:
        cluster.attempt("exec", pod["metadata"]["name"], "-n", NAMESPACE, "--", "sh", "-c", "kill $(cat /tmp/load)")
    cluster.wait("one pod again", lambda: _running(cluster, 1))


def test_without_the_metrics_api_nothing_is_scaled_and_the_autoscaler_says_so(
    scaling: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    made(_deployment(image, requested=20, held=4))
    made(_autoscaler(RATIO, 6))
    (pod,) = cluster.wait("the first pod", lambda: _running(cluster, 1))
    cluster.wait("the autoscaler to see it", lambda: _active(cluster)[0] == "True")
    cluster("scale", "deployment/confcom-metrics-api", "-n", ADDON_NAMESPACE, "--replicas=0")
    try:
        cluster.wait("the API to be away", lambda: _available(cluster) == "False")
        _load(cluster, pod["metadata"]["name"], 14)
        state, message = cluster.wait("the autoscaler to say so", lambda: _said_no(cluster))
        assert state == "False"
        assert "sgx_epc_used_ratio" in message or "custom metrics" in message
        assert len(_pods(cluster)) == 1
    finally:
        cluster("scale", "deployment/confcom-metrics-api", "-n", ADDON_NAMESPACE, "--replicas=2")
        cluster.rollout("deployment", "confcom-metrics-api")
    cluster.wait("a second pod", lambda: _running(cluster, 2))


def _said_no(cluster: Kubectl) -> tuple[str, str] | None:
    found = _active(cluster)
    return found if found[0] == "False" else None


def test_without_the_exporter_of_a_node_the_autoscaler_names_the_node(
    scaling: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    made(_deployment(image, requested=20, held=4))
    made(_autoscaler(RATIO, 6))
    cluster.wait("the first pod", lambda: _running(cluster, 1))
    cluster.wait("the autoscaler to see it", lambda: _active(cluster)[0] == "True")
    nowhere = json.dumps({"spec": {"template": {"spec": {"nodeSelector": {"no-such": "node"}}}}})
    cluster("patch", "daemonset/sgx-metrics", "-n", ADDON_NAMESPACE, "-p", nowhere)
    try:
        _, message = cluster.wait("the autoscaler to say so", lambda: _said_no(cluster))
        assert "no exporter of EPC use runs on node" in message
        assert len(_pods(cluster)) == 1
    finally:
        everywhere = json.dumps({"spec": {"template": {"spec": {"nodeSelector": None}}}})
        cluster("patch", "daemonset/sgx-metrics", "-n", ADDON_NAMESPACE, "-p", everywhere)
        cluster.rollout("daemonset", "sgx-metrics")
    cluster.wait("the autoscaler to act again", lambda: _active(cluster)[0] == "True")


def test_on_a_full_node_the_new_pod_waits_with_the_reason(
    scaling: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    """A node autoscaler acts on this condition."""
    made(_deployment(image, requested=70, held=60))
    made(_autoscaler(RATIO, 3))
    pods = cluster.wait("three pods", lambda: _settled(cluster, 3), 240)
    (waiting,) = [pod for pod in pods if pod["status"]["phase"] == "Pending"]
    (placed,) = [one for one in waiting["status"]["conditions"] if one["type"] == "PodScheduled"]
    assert placed["reason"] == "Unschedulable"
    assert "Insufficient kubernetes.azure.com/sgx_epc_mem_in_MiB" in placed["message"]


def _settled(cluster: Kubectl, count: int) -> list[Any] | None:
    def looked_at(pod: Any) -> bool:
        conditions = pod["status"].get("conditions", [])
        waits = any(one["type"] == "PodScheduled" and one["status"] == "False" for one in conditions)
        return pod["status"]["phase"] == "Running" or waits

    found = [pod for pod in _pods(cluster) if looked_at(pod)]
    return found if len(found) == count else None


def test_beside_another_server_it_is_refused_and_its_owner_is_named(scaling: Addon, cluster: Kubectl) -> None:
    """Of any version: HPA asks one version for all metrics."""
    service = {"namespace": "monitoring", "name": "prometheus-adapter"}
    spec = {"group": "custom.metrics.k8s.io", "version": "v1beta1", "service": service, "insecureSkipTLSVerify": True}
    name = "v1beta1.custom.metrics.k8s.io"
    cluster.apply(
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": name},
            "spec": spec | {"groupPriorityMinimum": 100, "versionPriority": 1},
        }
    )
    try:
        outcome = scaling("update", "--enable-autoscaling", "-o", "none")
    finally:
        cluster("delete", "apiservice", name)
    assert outcome.code == 2
    assert "Service monitoring/prometheus-adapter" in outcome.err
    assert "KEDA" in outcome.err


def test_only_who_may_read_metrics_is_answered(scaling: Addon, cluster: Kubectl) -> None:
    path = f"{METRICS}/metrics/sgx_epc_used_bytes"
    refused = cluster.attempt("get", "--raw", path, "--as=bob")
    assert "forbidden" in refused.err.lower()
    discovered = json.loads(cluster("get", "--raw", API))
    assert "pods/sgx_epc_used_ratio" in [one["name"] for one in discovered["resources"]]


def test_quotes_per_second_are_those_of_the_pod(
    scaling: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    """The helper knows its clients by the uid of their pod."""
    command = (
        "while :; do confcom quote --machine /dev/sgx_enclave --report-data 00 -o /tmp/quote >/dev/null 2>&1; done"
    )
    busy = _deployment(image, requested=10, held=4)
    spec = busy["spec"]["template"]["spec"]
    spec["containers"][0]["command"] = ["sh", "-c", command]
    spec["containers"][0]["env"] = [{"name": "SGX_AESM_ADDR", "value": "1"}]
    made(busy)
    (pod,) = cluster.wait("the pod", lambda: _running(cluster, 1))
    name = pod["metadata"]["name"]
    found = cluster.wait("its quotes", lambda: _rate(cluster, name))
    assert found not in ("", "0")


def _rate(cluster: Kubectl, name: str) -> str:
    found = _values(cluster, f"pods/{name}/sgx_quotes_per_second").get(name, "")
    return "" if found == "0" else found


@pytest.mark.parametrize("path", sorted(FILES.glob("hpa-*.yaml")), ids=lambda path: path.stem)
def test_the_api_server_takes_the_files_for_autoscalers(scaling: Addon, cluster: Kubectl, path: Path) -> None:
    cluster("apply", "-n", NAMESPACE, "--dry-run=server", "--validate=strict", "-f", str(path))
