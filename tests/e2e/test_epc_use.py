"""Use of EPC on a real cluster: who has more than requested is reported, by the event, the metric and `confcom top`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import limits, one_container, pod
from kubectl import ADDON_NAMESPACE, Kubectl
from measured_use import MIB, events, top

NAMESPACE = "e2e"
NODE = 40
"""MiB of EPC."""

pytestmark = pytest.mark.promise("M5")


@pytest.fixture(scope="module")
def watched(addon: Addon, cluster: Kubectl) -> Addon:
    """The add-on with the exporter, ready, on a small node."""
    addon.enable("--enable-metrics", f"--simulated-epc={NODE}Mi")
    for name in ("sgx-device-plugin", "sgx-metrics"):
        cluster.rollout("daemonset", name)
    return addon


def holding(image: str, name: str, held: int, requested: int | None) -> dict[str, Any]:
    """A pod whose simulated enclave has `held` MiB."""
    more = {} if requested is None else {"resources": limits(requested)}
    spec = one_container(image, "confcom", "simulate", "hold", "--epc", f"{held}Mi", **more)
    return pod(name, NAMESPACE, spec)


def samples(addon: Addon) -> dict[str, float]:
    """The exporter's page, as Prometheus would get it."""
    (exporter,) = addon.pods("metrics")
    name = exporter["metadata"]["name"]
    text = addon.cluster("get", "--raw", f"/api/v1/namespaces/{ADDON_NAMESPACE}/pods/{name}/proxy/metrics")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def value(addon: Addon, metric: str, name: str, kind: str = "") -> float | None:
    for series, number in samples(addon).items():
        labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
        here = (labels.get("namespace"), labels.get("pod"), labels.get("kind", ""))
        if series.startswith(f"confcom_epc_{metric}{{") and here == (NAMESPACE, name, kind):
            return number
    return None


@pytest.fixture(scope="module")
def pods(watched: Addon, cluster: Kubectl, image: str) -> Iterator[None]:
    """All at once, so that the exporter sees them all in the same interval."""
    greedy, modest = holding(image, "greedy", 20, 10), holding(image, "modest", 8, 10)
    vast = holding(image, "vast", held=48, requested=10)
    # Not requested at all: the device itself, mounted by hand.
    unasked = holding(image, "unasked", held=4, requested=None)
    (container,) = unasked["spec"]["containers"]
    container["volumeMounts"] = [{"name": "device", "mountPath": "/dev/sgx_enclave"}]
    path = "/var/lib/confcom/simulated-node/dev/sgx_enclave"
    unasked["spec"]["volumes"] = [{"name": "device", "hostPath": {"path": path, "type": "File"}}]
    cluster.apply(greedy, modest, vast, unasked)
    yield
    cluster("delete", "pods", "greedy", "modest", "vast", "unasked", "-n", NAMESPACE)


@pytest.mark.complaint("intel-device-plugins #426", "intel-device-plugins #1567", "linux-sgx-driver #84")
def test_more_than_requested_is_reported_and_less_is_not(pods: None, watched: Addon, cluster: Kubectl) -> None:
    cluster.wait("the use to be seen", lambda: value(watched, "mapped_bytes", "greedy") == 20 * MIB)
    assert value(watched, "requested_bytes", "greedy") == 10 * MIB
    assert value(watched, "over_limit", "greedy", "over-limit") == 1
    cluster.wait("the use to be seen", lambda: value(watched, "mapped_bytes", "modest") == 8 * MIB)
    assert value(watched, "over_limit", "modest", "over-limit") == 0

    (event,) = cluster.wait("the event", lambda: events(cluster, "greedy"))
    assert (event["reason"], event["type"]) == ("EpcOverLimit", "Warning")
    assert event["regarding"]["uid"] == cluster.get("pod", "greedy", "-n", NAMESPACE)["metadata"]["uid"]
    assert "has 20 MiB of enclave memory mapped" in event["note"]
    assert "requested 10 MiB" in event["note"]
    assert "EpcOverLimit" in cluster("describe", "pod", "greedy", "-n", NAMESPACE)
    assert events(cluster, "modest") == []

    shown = top(cluster)
    assert (shown["greedy"]["mapped"], shown["greedy"]["over"]) == (20 * MIB, ["application over-limit"])
    assert (shown["modest"]["mapped"], shown["modest"]["over"]) == (8 * MIB, [])
    assert shown[""]["allocatable"] == NODE * MIB
    assert shown[""]["mapped"] >= 28 * MIB
    assert shown[""]["requested"] >= 20 * MIB


def test_an_enclave_larger_than_the_epc_of_the_node_is_slow_and_goes_on(pods: None, cluster: Kubectl) -> None:
    """EPC is paged: more than the node has costs speed and kills no program; its user sees why it is slow."""
    (event,) = cluster.wait("the event", lambda: events(cluster, "vast"))
    assert event["reason"] == "EpcOverLimit"
    assert "has 48 MiB of enclave memory mapped" in event["note"]
    shown = top(cluster)
    assert shown["vast"]["mapped"] == 48 * MIB > shown[""]["allocatable"]
    status = cluster.get("pod", "vast", "-n", NAMESPACE)["status"]
    assert (status["phase"], status["containerStatuses"][0]["restartCount"]) == ("Running", 0)


def test_a_device_without_a_request_of_epc_is_reported(pods: None, watched: Addon, cluster: Kubectl) -> None:
    (event,) = cluster.wait("the event", lambda: events(cluster, "unasked"))
    assert event["reason"] == "EpcNotRequested"
    assert value(watched, "over_limit", "unasked", "no-request") == 1
    assert value(watched, "requested_bytes", "unasked") is None


def test_the_exporter_does_with_its_rights(watched: Addon, cluster: Kubectl) -> None:
    (exporter,) = watched.pods("metrics")
    assert not exporter["spec"].get("hostPID")
    assert exporter["spec"]["containers"][0]["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["SYS_PTRACE"],
    }
    account = f"--as=system:serviceaccount:{ADDON_NAMESPACE}:sgx-metrics"
    for verb, thing, allowed in (
        ("list", "pods", True), ("create", "events.events.k8s.io", True), ("get", "nodes", True),
        ("get", "secrets", False), ("create", "pods", False), ("patch", "nodes", False), ("delete", "events", False),
    ):  # fmt: skip
        answer = cluster.attempt("auth", "can-i", verb, thing, "-n", NAMESPACE, account)
        assert answer.out.strip() == ("yes" if allowed else "no"), (verb, thing)
