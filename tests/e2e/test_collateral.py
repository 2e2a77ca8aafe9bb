"""The collateral service of the add-on: asked over TLS by pods that trust its CA; its store can outlive its pod."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import attesting, job, one_container
from cluster_volumes import volume_by_hand
from confcom.pki.serving_pair import make_serving_pair
from kubectl import ADDON_NAMESPACE, Kubectl

HOST = "confcom-collateral.confcom-system.svc"
URL = f"https://{HOST}:8081"
TRUST = "/etc/confcom/trust"


@pytest.fixture(scope="module")
def serving(enabled: Addon, cluster: Kubectl) -> Addon:
    """The add-on with the service, whose CA a namespace has a copy of."""
    assert enabled("update", "--enable-collateral", "-o", "none").code == 0
    copy_trust(cluster)
    return enabled


def copy_trust(cluster: Kubectl) -> None:
    """What a relying party in the cluster mounts: who the service is, and the root of the simulated platforms."""
    data = {}
    for name in ("confcom-collateral-ca", "confcom-simulated-root"):
        data |= cluster.get("configmap", name, "-n", ADDON_NAMESPACE)["data"]
    metadata = {"name": "trust", "namespace": "e2e"}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def relying(cluster: Kubectl, spec: dict[str, Any]) -> dict[str, Any]:
    """A pod that trusts, and that knows the service by its name: this cluster has no DNS."""
    address = cluster.get("service", "confcom-collateral", "-n", ADDON_NAMESPACE)["spec"]["clusterIP"]
    spec["hostAliases"] = [{"ip": address, "hostnames": [HOST]}]
    spec["volumes"] = [{"name": "trust", "configMap": {"name": "trust"}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "trust", "mountPath": TRUST}]
    return spec


@pytest.mark.promise("M10")
def test_a_pod_verifies_by_the_service_over_tls(
    serving: Addon, cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    spec = relying(cluster, attesting(image, "0a"))
    command = spec["containers"][0]["command"]
    trust = f"--collateral {URL} --trust-root {TRUST}/root_ca.pem"
    command[2] = (
        f"{command[2]} >/dev/null && confcom verify /tmp/quote {trust} --collateral-ca {TRUST}/ca-certificates.crt"
        f" && ! confcom verify /tmp/quote {trust}"
    )
    spec["containers"][0]["command"] = command
    log = run(job("verify-tls", "e2e", spec, annotations={"confcom.dev/quote-mode": "out-of-proc"}))
    assert "ACCEPTED" in log.upper()
    assert "certificate" in log  # who was told of no authority trusts none


CURL = """
import ssl, sys, urllib.request
answer = urllib.request.urlopen(sys.argv[1], timeout=20)
print(answer.status, answer.headers["Content-Type"])
"""


def test_mounted_where_the_system_looks_its_ca_is_trusted_by_others(
    serving: Addon, cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    """As the quote helper mounts it for Intel's library, which cannot be told of a CA."""
    words = ("python3", "-c", CURL, f"{URL}/sgx/certification/v4/rootcacrl")
    spec = relying(cluster, one_container(image, *words))
    spec["containers"][0]["volumeMounts"][0]["mountPath"] = "/etc/ssl/certs"
    assert "200" in run(job("system-trust", "e2e", spec))


def test_the_certificate_outlives_the_pod(serving: Addon, cluster: Kubectl) -> None:
    published = cluster.get("configmap", "confcom-collateral-ca", "-n", ADDON_NAMESPACE)["data"]
    cluster("delete", "pod", "-n", ADDON_NAMESPACE, "-l", "app.kubernetes.io/component=collateral", "--wait")
    cluster.rollout("deployment", "confcom-collateral")
    assert cluster.get("configmap", "confcom-collateral-ca", "-n", ADDON_NAMESPACE)["data"] == published
    assert serving("update", "-o", "none").code == 0  # what the service wrote is not the add-on's to take away
    assert cluster.get("configmap", "confcom-collateral-ca", "-n", ADDON_NAMESPACE)["data"] == published


@pytest.fixture
def volume(serving: Addon, cluster: Kubectl) -> Iterator[str]:
    """A volume that an operator made, in a cluster without storage classes."""
    with volume_by_hand(serving, cluster, "e2e-store") as found:
        yield found
        assert serving("update", "--collateral-storage", "", "-o", "none").code == 0


def documents(cluster: Kubectl) -> int:
    """How many documents are in the store."""
    raw = f"/api/v1/namespaces/{ADDON_NAMESPACE}/services/https:confcom-collateral:https/proxy/readyz"
    found: int = json.loads(cluster("get", "--raw", raw))["documents"]
    return found


def test_a_store_on_a_volume_is_full_after_a_restart(serving: Addon, cluster: Kubectl, volume: str) -> None:
    fmspc = "000053494d00"
    outcome = serving("update", "--collateral-storage", volume, "--collateral-fmspc", fmspc, "-o", "none")
    assert outcome.code == 0, outcome.err
    # The FMSPC's documents are there before anybody asked: without them the service would not have been ready.
    kept = cluster.wait("documents", lambda: documents(cluster))
    # Whom it would ask is taken away, and the kinds of platforms too: what it has now it has from the volume.
    assert serving("update", "--collateral-fmspc", "", "-o", "none").code == 0
    cluster("delete", "pod", "-n", ADDON_NAMESPACE, "-l", "app.kubernetes.io/component=collateral", "--wait")
    cluster.rollout("deployment", "confcom-collateral")
    assert documents(cluster) >= kept


def test_a_given_certificate_is_taken_from_its_secret(serving: Addon, cluster: Kubectl) -> None:
    """As cert-manager leaves it: the service serves it and publishes its authority."""
    now = datetime.now(UTC)  # noqa: TID251 - the cluster's time
    authority, pair = make_serving_pair((HOST,), now=now, lifetime=timedelta(days=1), common_name="given")
    parts = {"ca.crt": authority, "tls.crt": pair.certificate, "tls.key": pair.key}
    data = {name: base64.b64encode(content).decode() for name, content in parts.items()}
    metadata = {"name": "e2e-given", "namespace": ADDON_NAMESPACE}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "data": data}
    )
    try:
        outcome = serving("update", "--collateral-tls-secret", "e2e-given", "-o", "none")
        assert outcome.code == 0, outcome.err
        words = ("configmap", "confcom-collateral-ca", "-n", ADDON_NAMESPACE)
        assert cluster.get(*words)["data"]["ca-certificates.crt"].encode() == authority
    finally:
        assert serving("update", "--collateral-tls-secret", "", "-o", "none").code == 0
        cluster("delete", "secret", "e2e-given", "-n", ADDON_NAMESPACE)


@pytest.mark.promise("M1")
def test_what_is_switched_off_and_on_again_at_once_is_there_again(serving: Addon, cluster: Kubectl) -> None:
    """What was deleted lives on until its pods have ended, and would take along what is applied to it."""
    assert serving("update", "--disable-collateral", "-o", "none").code == 0
    outcome = serving("update", "--enable-collateral", "-o", "none")
    assert outcome.code == 0, outcome.err
    assert cluster.get("deployment", "confcom-collateral", "-n", ADDON_NAMESPACE)["status"]["readyReplicas"] == 1
    copy_trust(cluster)
