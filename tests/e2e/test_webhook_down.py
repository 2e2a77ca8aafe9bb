"""While the webhook is down, ordinary pods are made, and pods that use SGX are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from cluster_addon import Addon
from cluster_jobs import job, limits, one_container, pod
from kubectl import ADDON_NAMESPACE, Kubectl

WEBHOOK = "deployment/sgx-webhook"


@pytest.fixture
def webhook_down(cluster: Kubectl, enabled: Addon) -> Iterator[None]:
    cluster("scale", WEBHOOK, "-n", ADDON_NAMESPACE, "--replicas=0")
    cluster.wait("the webhook to be gone", lambda: not enabled.pods("webhook"))
    slices = ("endpointslices", "-n", ADDON_NAMESPACE, "-l", "kubernetes.io/service-name=sgx-webhook")
    cluster.wait("its addresses to be gone", lambda: not any(s.get("endpoints") for s in cluster.items(*slices)))
    yield
    cluster("scale", WEBHOOK, "-n", ADDON_NAMESPACE, "--replicas=1")
    cluster.rollout("deployment", "sgx-webhook")


@pytest.mark.promise("M1")
@pytest.mark.complaint("Azure/AKS #2214")
def test_ordinary_pods_are_untouched(webhook_down: None, run: Callable[..., str], image: str) -> None:
    assert run(job("ordinary", "e2e", one_container(image, "echo", "hello"))).strip() == "hello"


@pytest.mark.promise("M1")
@pytest.mark.complaint("intel-device-plugins #1695")
def test_a_pod_with_sgx_is_not_made_at_all(webhook_down: None, cluster: Kubectl, image: str) -> None:
    spec = one_container(image, "true", resources=limits(10))
    refused = cluster.attempt("create", "-f", "-", given=json.dumps(pod("half", "e2e", spec)))
    assert refused.code != 0
    assert "sgx-webhook.confcom.dev" in refused.err
