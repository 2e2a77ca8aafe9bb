"""What the add-on's accounts may do at a real API server: their own node, their own objects, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightkube.core.exceptions import ApiError
from lightkube.resources.core_v1 import Node
from lightkube.types import PatchType

from cluster_addon import Addon
from confcom.cluster.client import open_client
from kubectl import ADDON_NAMESPACE, Kubectl

OTHER = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other-node"}}
EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
STRICT = "e2e-strict"
ACCOUNT = f"system:serviceaccount:{ADDON_NAMESPACE}:"


@pytest.fixture(scope="module")
def other_node(enabled: Addon, cluster: Kubectl) -> Iterator[str]:
    assert enabled("update", "--enable-webhook", "-o", "none").code == 0
    cluster.apply(OTHER)
    yield "other-node"
    cluster("delete", "node", "other-node")


@pytest.fixture(scope="module")
def plugin(enabled: Addon, cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl as the device plugin's pod: its token is bound to the pod and its node, as the mounted one is."""
    (pod,) = enabled.pods("device-plugin")
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod['metadata']['name']}")
    return _as_plugin(cluster, tmp_path_factory.mktemp("plugin"), *bound)


def _as_plugin(cluster: Kubectl, folder: Path, *bound: str) -> Kubectl:
    token = cluster("create", "token", "sgx-device-plugin", "-n", ADDON_NAMESPACE, *bound).strip()
    config = json.loads(cluster("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"][0]["user"] = {"token": token}
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return Kubectl(cluster.program, str(path))


def patch(plugin: Kubectl, node: str, change: dict[str, Any]) -> str:
    """What comes of a patch of a node's status: nothing, or the API server's words. (kubectl would read it first.)"""

    async def run() -> None:
        async with open_client(plugin.kubeconfig) as client:
            await client.patch(Node.Status, node, change, patch_type=PatchType.MERGE)

    try:
        asyncio.run(run())
    except ApiError as error:
        return str(error.status.message)
    return ""


def test_the_plugin_writes_epc_to_its_own_node_only(enabled: Addon, plugin: Kubectl, other_node: str) -> None:
    own = enabled.node()["metadata"]["name"]
    amounts = {EPC: str(enabled.allocatable())}
    change = {"status": {"capacity": amounts, "allocatable": amounts}}
    assert patch(plugin, own, change) == ""
    assert "writes to the status of its own node only" in patch(plugin, other_node, change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": {"capacity": {"example.com/gpu": "1"}}}, "changes nothing in status.capacity"),
        ({"status": {"allocatable": {"cpu": "1"}}}, "changes nothing in status.allocatable"),
        ({"status": {"capacity": {"pods": None}}}, "changes nothing in status.capacity"),
        ({"status": {"conditions": []}}, "changes nothing else of a node's status"),
        ({"metadata": {"labels": {"example.com/zone": "mine"}}}, "changes nothing in metadata.labels"),
        ({"metadata": {"labels": {"kubernetes.io/hostname": None}}}, "changes nothing in metadata.labels"),
    ],
)
def test_the_plugin_changes_nothing_else_there(
    enabled: Addon, plugin: Kubectl, other_node: str, change: dict[str, Any], said: str
) -> None:
    assert said in patch(plugin, enabled.node()["metadata"]["name"], change)


def test_a_token_without_a_node_writes_nothing(
    enabled: Addon, cluster: Kubectl, other_node: str, tmp_path: Path
) -> None:
    unbound = _as_plugin(cluster, tmp_path)
    own = enabled.node()["metadata"]["name"]
    assert "its own node only" in patch(unbound, own, {"metadata": {"labels": {"confcom.dev/x": "y"}}})


@pytest.mark.parametrize(
    ("account", "verb", "what", "allowed"),
    [
        ("sgx-device-plugin", "list", "nodes", True),
        ("sgx-device-plugin", "update", "nodes", False),
        ("sgx-device-plugin", "list", "pods", False),
        ("sgx-device-plugin", "get", "secrets", False),
        ("sgx-quote-helper", "get", "nodes", False),
        ("sgx-webhook", "get", "secrets/sgx-webhook-tls", True),
        ("sgx-webhook", "get", "secrets/confcom-simulated-world", False),
        ("sgx-webhook", "list", "secrets", False),
        ("sgx-webhook", "patch", "mutatingwebhookconfigurations/sgx-webhook.confcom.dev", True),
        ("sgx-webhook", "patch", "mutatingwebhookconfigurations/another", False),
        ("sgx-webhook", "create", "pods", False),
    ],
)
def test_accounts_may_do_what_they_need(
    other_node: str, cluster: Kubectl, account: str, verb: str, what: str, allowed: bool
) -> None:
    words = ("auth", "can-i", verb, what, "-n", ADDON_NAMESPACE, f"--as={ACCOUNT}{account}")
    assert cluster.attempt(*words).out.strip() == ("yes" if allowed else "no")


def test_webhook_and_collateral_service_pass_the_strictest_pod_security(
    enabled: Addon, cluster: Kubectl, other_node: str
) -> None:
    """The API server's own judgement: their pods, tried in a namespace that enforces `restricted`."""
    assert enabled("update", "--enable-collateral", "-o", "none").code == 0
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STRICT, "labels": restricted}})
    try:
        assert tried(cluster, "deployment", "sgx-webhook") == ""
        assert tried(cluster, "deployment", "confcom-collateral") == ""
        assert "violates PodSecurity" in tried(cluster, "daemonset", "sgx-device-plugin")  # it does judge
    finally:
        cluster("delete", "namespace", STRICT, "--wait=false")
        assert enabled("update", "--disable-collateral", "-o", "none").code == 0


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
