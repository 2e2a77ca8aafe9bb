"""An operator who names the namespaces that use SGX keeps the webhook out of all others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster_addon import GRANTED, Addon
from cluster_jobs import one_container, pod
from kubectl import Kubectl

LIMITS = {"limits": {"sgx.intel.com/epc": "10Mi", "sgx.intel.com/enclave": "1"}}


@pytest.fixture
def named(cluster: Kubectl, enabled: Addon) -> Iterator[None]:
    """One namespace with the label, one without."""
    cluster("label", "namespace", GRANTED, "confcom.dev/sgx=true")
    enabled.enable("--webhook-namespaces=labelled")
    yield
    enabled.enable()
    cluster("label", "namespace", GRANTED, "confcom.dev/sgx-")


def made(cluster: Kubectl, namespace: str, image: str) -> Any:
    """What the API server would make of a pod there."""
    given = json.dumps(pod("asked", namespace, one_container(image, "true", resources=LIMITS)))
    return json.loads(cluster("create", "--dry-run=server", "-o", "json", "-f", "-", given=given))


@pytest.mark.promise("M1")
def test_only_pods_of_the_named_namespaces_meet_the_webhook(named: None, cluster: Kubectl, image: str) -> None:
    def translated() -> bool:
        (container,) = made(cluster, GRANTED, image)["spec"]["containers"]
        return "kubernetes.azure.com/sgx_epc_mem_in_MiB" in container["resources"]["limits"]

    cluster.wait("the API server to go by the label", translated)
    elsewhere = made(cluster, "e2e", image)
    assert elsewhere["spec"]["containers"][0]["resources"]["limits"] == LIMITS["limits"]
    assert "confcom.dev/uses-sgx" not in elsewhere["metadata"].get("labels", {})
    labels = made(cluster, GRANTED, image)["metadata"]["labels"]
    assert labels["confcom.dev/uses-sgx"] == "true"
