"""The attestation service on a test cluster, which has no DNS: it finds the collateral service by a host alias."""

from __future__ import annotations

import json

from cluster_addon import Addon
from kubectl import ADDON_NAMESPACE, Kubectl

ATTESTATION = "confcom-attestation-simulated"
COLLATERAL = f"confcom-collateral.{ADDON_NAMESPACE}.svc"


def address_of(cluster: Kubectl, service: str) -> str:
    """The address of a Service of the add-on."""
    found: str = cluster.get("service", service, "-n", ADDON_NAMESPACE)["spec"]["clusterIP"]
    return found


def start_attestation(addon: Addon, cluster: Kubectl, *settings: str) -> None:
    """Enable both services with these settings, and wait until they are ready; without collateral it is not."""
    words = ("--enable-collateral", "--enable-attestation-service", *settings, "-o", "none")
    outcome = addon("update", *words, "--no-wait")
    assert outcome.code == 0, outcome.err
    pod = {"hostAliases": [{"ip": address_of(cluster, "confcom-collateral"), "hostnames": [COLLATERAL]}]}
    patch = json.dumps({"spec": {"template": {"spec": pod}}})
    cluster("patch", "deployment", ATTESTATION, "-n", ADDON_NAMESPACE, "--type=strategic", "-p", patch)
    if cluster.get("deployment", ATTESTATION, "-n", ADDON_NAMESPACE)["spec"]["strategy"]["type"] == "Recreate":
        # A pod that does not listen to SIGTERM yet takes all the time that it is given, and its successor waits.
        begun = ("pods", "-n", ADDON_NAMESPACE, "-l", "app.kubernetes.io/component=attestation")
        cluster("delete", *begun, "--grace-period=1", "--wait=false")
    outcome = addon("update", "-o", "none")
    assert outcome.code == 0, outcome.err
