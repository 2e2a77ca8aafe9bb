"""The certificate signer: its Deployment, its CA, and the role that people give to pods that may ask it.

An instance judges real or simulated evidence, never both: the simulated one has another name
and another CA, so that no certificate of it is taken for one of hardware.
"""

from __future__ import annotations

from confcom.manifests import account_policies, collateral, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import NAMESPACE, Component, Object, Workload, rule
from confcom.manifests.tls_service import own_data, own_data_rules
from confcom.protocols.certificate_requests import EVENTS_CONTROLLER, GROUP, PLURAL, SIGNER

HARDWARE = Workload("certificate-signer", "confcom-certificate-signer")
SIMULATED = Workload("certificate-signer", "confcom-certificate-signer-simulated")
HTTP_PORT = 9464
REPLICAS = 2
POLICIES_CONFIG_MAP = "confcom-certificate-policies"
"""The operator's, with a policy per service account; it need not be there."""
POLICIES_FOLDER = "/etc/confcom/certificate-policies"
REQUESTER = "confcom-certificate-requester"
"""The ClusterRole of pods that may ask; people bind it to service accounts."""


def certificate_signer(config: AddonConfig) -> list[Object]:
    """Every object of the signer; the Deployment last, after what it uses."""
    workload = SIMULATED if config.platform == "simulated" else HARDWARE
    secret = f"{workload.name}-ca"
    config_map = f"confcom-attested-pods-ca{'-simulated' if workload is SIMULATED else ''}"
    judging = collateral.judging(config)
    settings = {"policies": POLICIES_FOLDER, "namespace": NAMESPACE, "secret": secret, "config_map": config_map}
    if config.approve_for:
        settings["approve_for"] = ",".join(config.approve_for)
    policies = {"name": POLICIES_CONFIG_MAP, "optional": True}
    component = Component(
        workload=workload,
        replicas=REPLICAS,
        settings=settings | judging.settings,
        ports={"http": HTTP_PORT},
        requests=objects.resources("50m", "96Mi", "384Mi"),
        volumes=[objects.volume("policies", POLICIES_FOLDER, configMap=policies), *judging.volumes],
        egress=judging.egress,
        rules=own_data_rules(secret, config_map),
        cluster_rules=[
            rule(GROUP, [PLURAL], ["get", "list", "watch"]),
            rule(GROUP, [f"{PLURAL}/approval", f"{PLURAL}/status"], ["update"]),
            rule(GROUP, ["signers"], ["approve", "sign"], [SIGNER]),
            *([rule(GROUP, ["signers"], ["approve"], [*config.approve_for])] if config.approve_for else []),
            rule("events.k8s.io", ["events"], ["create", "get", "patch"]),
        ],
        init=judging.init,
    )
    asking = [rule(GROUP, [PLURAL], ["create", "get"])]
    return [
        *own_data(workload, secret, config_map),
        *account_policies.own_pod_events(workload, EVENTS_CONTROLLER),
        objects.global_object(f"{objects.RBAC}/v1", "ClusterRole", REQUESTER, workload.component, rules=asking),
        *component.objects(config),
    ]
