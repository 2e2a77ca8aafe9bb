"""A cluster of one node, as this one is: nothing waits for something that waits for it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

from cluster_addon import Addon
from cluster_jobs import attesting, job, limits, one_container, pod, with_aesmd
from cluster_plugin import CLUSTER_SCRIPTS, own_cluster
from kubectl import ADDON_NAMESPACE, Kubectl
from relying_party import RelyingParty, quote_in


@pytest.fixture
def alone(cluster: Kubectl, addon: Addon) -> Addon:
    """The add-on with the two webhook pods that it has by default."""
    if len(cluster.items("nodes")) > 1:
        pytest.skip("this cluster has several nodes")
    addon.enable("--webhook-replicas=2")
    return addon


@pytest.mark.complaint("Azure/AKS #2219")
def test_with_everything_gone_at_once_ordinary_pods_run_and_enabling_brings_it_back(
    alone: Addon, cluster: Kubectl, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    assert len(alone.pods("webhook")) == 2
    cluster("delete", "pods", "--all", "-n", ADDON_NAMESPACE, "--grace-period=0", "--force")
    # Without a webhook to admit pods, ordinary ones are made, and so are those of the add-on, though they request EPC.
    assert run(job("ordinary", "e2e", one_container(image, "echo", "hello"))).strip() == "hello"
    cluster.rollout("deployment", "sgx-webhook")
    outcome = alone("enable", "-o", "none")
    assert outcome.code == 0, outcome.err
    assert json.loads(alone("show").out)["ready"]["sgx-webhook"] == "2/2"
    quote = quote_in(run(job("alone", "e2e", with_aesmd(attesting(image, "a1")))))
    assert relying_party.verify(quote, "a1")["exit_code"] == 0


@pytest.mark.complaint("Azure/AKS #2219")
@pytest.mark.promise("M7")
def test_a_node_that_restarts_has_everything_again_by_itself(
    alone: Addon, cluster: Kubectl, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    """The kubelet knows no device until the plugin runs, and rejects the helper that it had: there is a successor."""
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the node of this cluster is not ours to restart")
    # With as much time between two node statuses as kubelets have: the scheduler knows that late what is there.
    environment = os.environ | {"KUBE_HOME": str(home), "KUBE_STATUS_SECONDS": "10"}
    before = {component: _serving(alone, component) for component in ("device-plugin", "webhook", "quote-helper")}
    for script in ("down.sh", "up.sh"):
        subprocess.run([CLUSTER_SCRIPTS / script], env=environment, check=True, capture_output=True, timeout=300)
    for component, containers in before.items():
        # What is said of pods at first is what was known before.
        cluster.wait(f"{component} to be started again", lambda c=component, old=containers: _serving(alone, c) - old)
    quote = quote_in(run(job("restarted", "e2e", with_aesmd(attesting(image, "a2")))))
    assert relying_party.verify(quote, "a2")["exit_code"] == 0


def _serving(addon: Addon, component: str) -> set[str]:
    """The containers of a component that are ready."""
    statuses = [one for pod in addon.pods(component) for one in pod["status"].get("containerStatuses", [])]
    return {one["containerID"] for one in statuses if one["ready"]}


@pytest.mark.complaint("Azure/AKS #2219")
def test_the_only_node_can_be_drained(alone: Addon, cluster: Kubectl, image: str) -> None:
    """Both webhooks run there, and their disruption budget must not hold it for ever."""
    node = alone.node()["metadata"]["name"]
    ours = "--pod-selector=app.kubernetes.io/part-of=confcom"
    try:
        cluster("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", ours, "--timeout=120s", seconds=150)
        assert [pod for pod in alone.pods("webhook") if pod["spec"].get("nodeName")] == []
    finally:
        cluster("uncordon", node)
    cluster.rollout("deployment", "sgx-webhook")
    wanting = json.dumps(pod("after", "e2e", one_container(image, "true", resources=limits(5))))
    assert cluster("create", "--dry-run=server", "-o", "name", "-f", "-", given=wanting).strip() == "pod/after"


@pytest.mark.complaint("azure-docs #93869", "gsc #99")
def test_a_pod_that_wants_the_helper_where_it_is_off_is_told_how_to_enable_it(
    alone: Addon, cluster: Kubectl, image: str
) -> None:
    assert alone("update", "--disable-sgxquotehelper", "-o", "none").code == 0
    wanting = json.dumps(pod("wanting", "e2e", with_aesmd(attesting(image, "00"))))

    def warning() -> str:
        # Pods of the webhook that are on their way out answer for some seconds more.
        said = cluster.attempt("create", "--dry-run=server", "-f", "-", given=wanting)
        assert said.code == 0
        return said.err

    said = cluster.wait("the warning", warning, seconds=20)
    assert "Warning: " in said
    assert "confcom addon update --addon confcom --enable-sgxquotehelper" in said
