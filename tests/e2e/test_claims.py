"""Pods with claims of EPC where the add-on publishes it so: they attest, and their use is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import CONFINED, QUOTE, job, one_container, pod
from confcom.protocols.epc import EPC_CLASS
from kubectl import Kubectl
from measured_use import MIB, events, top
from relying_party import RelyingParty, quote_in

pytestmark = pytest.mark.claims
RESTRICTED = "e2e-claims"


@pytest.fixture(scope="module")
def claims(cluster: Kubectl, addon: Addon) -> Iterator[Addon]:
    """The add-on with claims and the exporter, and a namespace with a template, where `restricted` is enforced."""
    addon.enable("--enable-metrics")
    outcome = addon("update", "--publisher=dra", "-o", "none", "--timeout", "300")
    assert outcome.code == 0, outcome.err
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    exactly = {"deviceClassName": EPC_CLASS, "capacity": {"requests": {"epc": "10Mi"}}}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": RESTRICTED, "labels": labels}},
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaimTemplate",
            "metadata": {"name": "epc", "namespace": RESTRICTED},
            "spec": {"spec": {"devices": {"requests": [{"name": "epc", "exactly": exactly}]}}},
        },
    )
    words = ("serviceaccount", "default", "-n", RESTRICTED)
    cluster.wait("the namespace's service account", lambda: cluster.find(*words))
    yield addon
    cluster("delete", "namespace", RESTRICTED, "--wait")


def claiming(image: str, *command: str) -> dict[str, Any]:
    """A container that gets 10 MiB by a claim."""
    spec = one_container(image, *command, resources={"claims": [{"name": "sgx"}]}, securityContext=CONFINED)
    return spec | {"resourceClaims": [{"name": "sgx", "resourceClaimTemplateName": "epc"}]}


@pytest.mark.promise("M5")
@pytest.mark.promise("M9")
def test_pods_with_claims_attest_and_what_they_claimed_is_their_request(
    claims: Addon,
    cluster: Kubectl,
    made: Callable[..., Any],
    run: Callable[..., str],
    tmp_path: Any,
    image: str,
) -> None:
    made(pod("holds", RESTRICTED, claiming(image, "confcom", "simulate", "hold", "--epc", "20Mi")))
    annotation = {"confcom.dev/quote-mode": "out-of-proc"}
    log = run(job("claims", RESTRICTED, claiming(image, "sh", "-c", QUOTE, "0e"), annotations=annotation))
    assert RelyingParty.of(cluster, tmp_path).verify(quote_in(log), "0e")["exit_code"] == 0
    (event,) = cluster.wait("the event", lambda: events(cluster, "holds", RESTRICTED))
    assert event["reason"] == "EpcOverLimit"
    assert "requested 10 MiB" in event["note"]
    assert "capacity epc of its claim to 20Mi" in event["note"]
    shown = top(cluster)
    assert (shown["holds"]["requested"], shown["holds"]["mapped"]) == (10 * MIB, 20 * MIB)
    assert shown[""]["allocatable"] == 176 * MIB
