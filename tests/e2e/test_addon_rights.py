"""What the add-on's accounts may do at a real API server: their own node, their own objects, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_rights import Account, Right, resources_of
from cluster_addon import GRANTED, Addon
from cluster_attestation import ATTESTATION, start_attestation
from cluster_jobs import one_container, pod
from confcom.manifests import account_policies
from confcom.manifests.addon_config import AddonConfig
from kubectl import ADDON_NAMESPACE, Kubectl

OTHER = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other-node"}}
EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
STRICT = "e2e-strict"


@pytest.fixture(scope="module")
def other_node(enabled: Addon, cluster: Kubectl) -> Iterator[str]:
    assert enabled("update", "--enable-webhook", "-o", "none").code == 0
    cluster.apply(OTHER)
    yield "other-node"
    cluster("delete", "node", "other-node")


@pytest.fixture(scope="module")
def plugin(
    enabled: Addon, other_node: str, cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Account]:
    """The device plugin's account, with a token bound to its pod and node, as the mounted one is."""
    (pod,) = enabled.pods("device-plugin")
    folder = tmp_path_factory.mktemp("plugin")
    with Account(cluster, "sgx-device-plugin", folder, pod=pod["metadata"]["name"]) as account:
        yield account


def status(node: str) -> str:
    return f"/api/v1/nodes/{node}/status"


def test_the_plugin_writes_epc_to_its_own_node_only(enabled: Addon, plugin: Account, other_node: str) -> None:
    own = enabled.node()["metadata"]["name"]
    change = {
        "metadata": {"labels": {"confcom.dev/sgx-epc-mib": "176", "confcom.dev/sgx-epc-overcommit": "1"}},
        "status": {"capacity": {EPC: "168"}, "allocatable": {EPC: "168"}},
    }
    assert plugin.write("PATCH", status(own), change) == ""
    assert "writes to the status of its own node only" in plugin.write("PATCH", status(other_node), change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": {"capacity": {"example.com/gpu": "1"}}}, "nothing of the capacity may change"),
        ({"status": {"allocatable": {"cpu": "1"}}}, "nothing of the allocatable may change"),
        ({"status": {"capacity": {"pods": None}}}, "nothing of the capacity may change"),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "nothing of the status may change"),
        ({"status": {"addresses": []}}, "nothing of the status may change"),
        ({"status": {"images": [{"names": ["x"], "sizeBytes": 1}]}}, "nothing of the status may change"),
        ({"status": {"phase": "Terminated"}}, "nothing of the status may change"),
        ({"status": {"volumesInUse": ["kubernetes.io/x"]}}, "nothing of the status may change"),
        ({"status": {"volumesAttached": [{"name": "x", "devicePath": "y"}]}}, "nothing of the status may change"),
        ({"status": {"nodeInfo": {"kubeletVersion": "v9"}}}, "nothing of the status may change"),
        ({"metadata": {"labels": {"example.com/zone": "mine"}}}, "nothing of the labels may change"),
        ({"metadata": {"labels": {"confcom.dev/sgx": None}}}, "nothing of the labels may change"),
        ({"metadata": {"labels": {"confcom.dev/other": "x"}}}, "nothing of the labels may change"),
        ({"metadata": {"labels": {"kubernetes.io/hostname": None}}}, "nothing of the labels may change"),
        ({"metadata": {"annotations": {"example.com/x": "y"}}}, "nothing of the annotations may change"),
        ({"metadata": {"annotations": {"confcom.dev/sgx-epc-boot": "x"}}}, "is its boot id"),
        ({"metadata": {"finalizers": ["example.com/stay"]}}, "nothing of the metadata may change"),
        (
            {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "1"}]}},
            "nothing of the metadata may change",
        ),
        ({"metadata": {"labels": {"confcom.dev/sgx-epc-mib": "177"}}}, "no more than simulatedEpc says"),
        (
            {
                "metadata": {"labels": {"confcom.dev/sgx-epc-mib": "176"}},
                "status": {"capacity": {EPC: "177"}, "allocatable": {EPC: "177"}},
            },
            "is no more than confcom.dev/sgx-epc-mib times",
        ),
    ],
)
def test_the_plugin_changes_nothing_else_there(
    enabled: Addon, plugin: Account, change: dict[str, Any], said: str
) -> None:
    assert said in plugin.write("PATCH", status(enabled.node()["metadata"]["name"]), change)


def test_on_real_nodes_the_size_is_found_once_per_boot(enabled: Addon, cluster: Kubectl, plugin: Account) -> None:
    """With the policy of the platform `intel` in place of the simulated one; their other rules are equal."""
    real = account_policies.own_node(AddonConfig())[0]
    simulated = account_policies.own_node(AddonConfig(platform="simulated", simulated_epc="176Mi"))[0]
    node = enabled.node()
    boot = node["status"]["nodeInfo"]["bootID"]
    path = status(node["metadata"]["name"])

    def sized(mib: int, at: str | None = None) -> dict[str, Any]:
        marks = {} if at is None else {"annotations": {"confcom.dev/sgx-epc-boot": at}}
        return {"metadata": {"labels": {"confcom.dev/sgx-epc-mib": str(mib)}} | marks}

    words = ("apply", "--server-side", "--force-conflicts", "--field-manager=confcom-addon", "-f", "-")
    try:
        cluster("annotate", "node", node["metadata"]["name"], "confcom.dev/sgx-epc-boot-")
        cluster(*words, given=json.dumps(real))
        cluster.wait("the policy", lambda: "found once per boot" in plugin.write("PATCH", path, sized(1 << 20)))
        assert plugin.write("PATCH", path, sized(1 << 20, boot)) == ""
        cluster("annotate", "node", node["metadata"]["name"], f"confcom.dev/sgx-epc-boot={boot}")
        cluster("label", "node", node["metadata"]["name"], "confcom.dev/sgx-epc-mib=176", "--overwrite")
        cluster.wait("the marks", lambda: "found once" in plugin.write("PATCH", path, sized(177, boot)))
        assert plugin.write("PATCH", path, sized(175)) == ""
    finally:
        cluster(*words, given=json.dumps(simulated))
        marks = ("confcom.dev/sgx-epc-boot-", "confcom.dev/sgx-epc-mib-")
        cluster("annotate", "node", node["metadata"]["name"], marks[0])
        cluster("label", "node", node["metadata"]["name"], marks[1])


def test_a_token_without_a_node_writes_nothing(
    enabled: Addon, cluster: Kubectl, other_node: str, tmp_path: Path
) -> None:
    own = enabled.node()["metadata"]["name"]
    change = {"metadata": {"labels": {"confcom.dev/sgx-epc-mib": "1"}}}
    with Account(cluster, "sgx-device-plugin", tmp_path) as unbound:
        assert "its own node only" in unbound.write("PATCH", status(own), change)


@pytest.fixture(scope="module")
def serving(enabled: Addon, cluster: Kubectl, other_node: str) -> Addon:
    """The add-on with all that has an account."""
    start_attestation(enabled, cluster, "--attestation-storage=", "--enable-metrics", "--enable-autoscaling")
    return enabled


READS = ("get", "list", "watch")
NODES = {Right(verb, "", "nodes") for verb in READS}
RIGHTS: dict[str, set[Right]] = {
    "sgx-device-plugin": NODES | {Right("patch", "", "nodes/status")},
    "sgx-quote-helper": set(),
    "sgx-webhook": NODES,
    "confcom-collateral": set(),
    ATTESTATION: set(),
    "sgx-metrics": {
        Right("get", "", "nodes"),
        Right("list", "", "pods"),
        Right("watch", "", "pods"),
        Right("get", "resource.k8s.io", "resourceclaims"),
        *(Right(verb, "events.k8s.io", "events") for verb in ("create", "get", "patch")),
    },
    "confcom-metrics-api": {Right("list", "", "pods"), Right("watch", "", "pods")},
    "default": set(),
}
"""Rights of each account to objects of any name. Rights to named objects are tested below."""


@pytest.mark.timeout(900)
def test_an_account_may_do_this_and_nothing_else(serving: Addon, cluster: Kubectl, tmp_path: Path) -> None:
    """Every verb of every resource, with each account's own token."""
    resources = resources_of(cluster)
    assert {group for _, group, _ in resources} >= {
        "",
        "apps",
        "apiregistration.k8s.io",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
    }
    for name, expected in RIGHTS.items():
        with Account(cluster, name, tmp_path) as account:
            assert account.rights(resources) == expected, name
    for name in ("confcom-collateral", ATTESTATION):
        with Account(cluster, name, tmp_path) as service:
            _write_data(service, name)
    (pod,) = serving.pods("metrics")
    with Account(cluster, "sgx-metrics", tmp_path, pod=pod["metadata"]["name"]) as metrics:
        _write_events(metrics, serving.node()["metadata"]["name"], cluster)


def _write_data(service: Account, name: str) -> None:
    place = f"/api/v1/namespaces/{ADDON_NAMESPACE}"
    for path, key in ((f"{place}/secrets/{name}-tls", "ca.crt"),
                      (f"{place}/configmaps/{name}-ca", "ca-certificates.crt")):  # fmt: skip
        assert service.client.get(path).status_code == 200
        assert service.write("PATCH", path, {"data": {key: "eA=="}}) == ""
        for change in ({"finalizers": ["example.com/x"]}, {"labels": {"a": "b"}}, {"annotations": {"a": "b"}}):
            assert "nothing of the metadata may change" in service.write("PATCH", path, {"metadata": change})
        assert "nothing of the data may change" in service.write("PATCH", path, {"data": {"x": "eA=="}})
        assert "nothing of the object may change" in service.write("PATCH", path, {"immutable": True})


def _write_events(metrics: Account, node: str, cluster: Kubectl) -> None:
    path = "/apis/events.k8s.io/v1/namespaces/e2e/events"
    own: dict[str, Any] = {
        "metadata": {"name": "an-event", "namespace": "e2e"},
        "eventTime": "2026-01-01T00:00:00.000001Z",
        "type": "Warning", "reason": "X", "action": "Y", "note": "Z",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "e2e", "name": "x", "uid": "1"},
        "reportingController": "confcom.dev/metrics", "reportingInstance": node,
    }  # fmt: skip
    assert metrics.write("POST", path, own) == ""
    for change, said in (
        ({"reportingController": "kubelet"}, "events of the controller confcom.dev/metrics only"),
        ({"reportingInstance": "other-node"}, "as its own node only"),
        ({"regarding": {"kind": "Node", "name": node, "namespace": "e2e"}}, "about pods only"),
        ({"metadata": own["metadata"] | {"finalizers": ["example.com/x"]}}, "no owners and no finalizers"),
    ):
        assert said in metrics.write("POST", path, own | change)
    cluster.apply({"apiVersion": "events.k8s.io/v1", "kind": "Event"} | own | {"reportingController": "kubelet"})
    try:
        series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000001Z"}}
        assert "of the controller" in metrics.write("PATCH", f"{path}/an-event", series)
    finally:
        cluster("delete", "events.events.k8s.io", "an-event", "-n", "e2e")


def test_what_serves_the_cluster_passes_the_strictest_pod_security(serving: Addon, cluster: Kubectl) -> None:
    """The API server's own judgement: their pods, tried in a namespace that enforces `restricted`."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STRICT, "labels": restricted}})
    try:
        for name in ("sgx-webhook", "confcom-collateral", ATTESTATION):
            assert tried(cluster, "deployment", name) == ""
        assert "violates PodSecurity" in tried(cluster, "daemonset", "sgx-device-plugin")  # it does judge
    finally:
        cluster("delete", "namespace", STRICT, "--wait=false")


def tried(cluster: Kubectl, kind: str, name: str) -> str:
    """What comes of making such a pod there: nothing, or the API server's words."""
    spec = cluster.get(kind, name, "-n", ADDON_NAMESPACE)["spec"]["template"]["spec"]
    # Account and priority are the add-on's; what is judged is the rest.
    kept = {key: value for key, value in spec.items() if key not in ("priorityClassName", "serviceAccount")}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": STRICT},
        "spec": kept | {"serviceAccountName": "default", "automountServiceAccountToken": False},
    }
    outcome = cluster.attempt("create", "--dry-run=server", "-f", "-", given=json.dumps(pod))
    return "" if outcome.code == 0 else outcome.err


@pytest.fixture(scope="module")
def without_webhook(enabled: Addon, other_node: str) -> Addon:
    """The add-on without its webhook, for the tests at the end of this module."""
    assert enabled("update", "--disable-webhook", "-o", "none").code == 0
    return enabled


@pytest.mark.parametrize(
    ("namespace", "resource", "said"),
    [
        ("e2e", "sgx.confcom.dev/quote-helper-epc", "is the quote helper's: request kubernetes.azure.com"),
        (GRANTED, "sgx.confcom.dev/quote-helper-epc", "is the quote helper's"),
        ("e2e", "sgx.intel.com/provision", "has no grant for sgx.intel.com/provision"),
        (GRANTED, "sgx.intel.com/provision", ""),
    ],
)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_what_is_reserved_is_refused_without_the_webhook(
    without_webhook: Addon, cluster: Kubectl, image: str, namespace: str, resource: str, said: str, kind: str
) -> None:
    spec = one_container(image, "true")
    spec.setdefault(kind, []).append(
        {"name": "asks", "image": image, "resources": {"limits": {EPC: "1", resource: "1"}}}
    )
    asks = json.dumps(pod("reserved", namespace, spec))

    def answer() -> Any:
        # The API server goes on to ask the webhook until it has seen that its configuration is gone.
        outcome = cluster.attempt("create", "--dry-run=server", "-f", "-", given=asks)
        return None if "admission webhook" in outcome.err else outcome

    outcome = cluster.wait("an answer that is not the webhook's", answer)
    assert said in outcome.err
    assert bool(said) == bool(outcome.code)
