"""Use of EPC on a real cluster: who has more than requested is reported, by the event, the metric and `confcom top`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import limits, one_container, pod
from confcom.protocols.dra_objects import EPC_CLASS
from kubectl import ADDON_NAMESPACE, Kubectl

NAMESPACE = "e2e"
MIB = 1 << 20

pytestmark = pytest.mark.promise("M5")


@pytest.fixture(scope="module")
def watched(addon: Addon, cluster: Kubectl) -> Addon:
    """The add-on with the exporter, ready."""
    addon.enable("--enable-metrics")
    cluster.rollout("daemonset", "sgx-metrics")
    return addon


def holding(image: str, name: str, held: int, requested: int | None) -> dict[str, Any]:
    """A pod whose simulated enclave has `held` MiB."""
    more = {} if requested is None else {"resources": limits(requested)}
    spec = one_container(image, "confcom", "simulate", "hold", "--epc", f"{held}Mi", **more)
    return pod(name, NAMESPACE, spec)


def events(cluster: Kubectl, name: str) -> list[dict[str, Any]]:
    found = cluster.items("events.events.k8s.io", "-n", NAMESPACE, f"--field-selector=regarding.name={name}")
    return [event for event in found if event["reason"].startswith("Epc")]


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


def top(cluster: Kubectl) -> dict[str, Any]:
    """Pods by name, as `confcom top` shows them with nothing but a kubeconfig."""
    command = [sys.executable, "-m", "confcom", "top", "--kubeconfig", cluster.kubeconfig, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["missing"] == []
    return {line["name"]: line for line in found["pods"]} | {"": found["nodes"][0]}


@pytest.mark.complaint("intel-device-plugins #426", "intel-device-plugins #1567", "linux-sgx-driver #84")
def test_more_than_requested_is_reported_and_less_is_not(
    watched: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    made(holding(image, "greedy", held=20, requested=10))
    made(holding(image, "modest", held=8, requested=10))
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
    assert shown[""]["allocatable"] == 176 * MIB
    assert shown[""]["mapped"] >= 28 * MIB
    assert shown[""]["requested"] >= 20 * MIB


@pytest.fixture
def small(watched: Addon) -> Iterator[Addon]:
    """The node with 32 MiB of EPC."""
    watched.enable("--enable-metrics", "--simulated-epc=32Mi")
    yield watched
    watched.enable("--enable-metrics")


def test_an_enclave_larger_than_the_epc_it_may_use_is_slow_and_goes_on(
    small: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    """EPC is paged: more than the node has costs speed and kills no program; its user sees why it is slow."""
    made(holding(image, "vast", held=40, requested=10))
    (event,) = cluster.wait("the event", lambda: events(cluster, "vast"))
    assert event["reason"] == "EpcOverLimit"
    assert "has 40 MiB of enclave memory mapped" in event["note"]
    shown = top(cluster)
    assert shown["vast"]["mapped"] == 40 * MIB > shown[""]["allocatable"]
    status = cluster.get("pod", "vast", "-n", NAMESPACE)["status"]
    assert (status["phase"], status["containerStatuses"][0]["restartCount"]) == ("Running", 0)


def test_a_device_without_a_request_of_epc_is_reported(
    watched: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    # The way around the books: the device itself, mounted by hand.
    spec = holding(image, "unasked", held=4, requested=None)
    (container,) = spec["spec"]["containers"]
    container["volumeMounts"] = [{"name": "device", "mountPath": "/dev/sgx_enclave"}]
    path = "/var/lib/confcom/simulated-node/dev/sgx_enclave"
    spec["spec"]["volumes"] = [{"name": "device", "hostPath": {"path": path, "type": "File"}}]
    made(spec)
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


@pytest.mark.claims
def test_what_was_claimed_is_the_request_of_who_claimed_it(
    watched: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    """Last here, because it publishes EPC in another way."""
    outcome = watched("update", "--publisher=dra", "-o", "none")
    assert outcome.code == 0, outcome.err
    claim = {"deviceClassName": EPC_CLASS, "capacity": {"requests": {"epc": "10Mi"}}}
    template = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "claiming", "namespace": NAMESPACE},
        "spec": {"spec": {"devices": {"requests": [{"name": "epc", "exactly": claim}]}}},
    }
    made(template)
    spec = one_container(image, "confcom", "simulate", "hold", "--epc", "20Mi", resources={"claims": [{"name": "epc"}]})
    made(
        pod(
            "claiming", NAMESPACE, spec | {"resourceClaims": [{"name": "epc", "resourceClaimTemplateName": "claiming"}]}
        )
    )
    (event,) = cluster.wait("the event", lambda: events(cluster, "claiming"), seconds=150)
    assert event["reason"] == "EpcOverLimit"
    assert "requested 10 MiB" in event["note"]
    assert "capacity epc of its claim to 20Mi" in event["note"]
    shown = top(cluster)
    assert (shown["claiming"]["requested"], shown["claiming"]["mapped"]) == (10 * MIB, 20 * MIB)
    assert shown[""]["allocatable"] == 176 * MIB
