"""The certificate signer: its Deployment, its CA, and the role that people give to pods that may ask it.

An instance judges real or simulated evidence, never both: the simulated one has another name
and another CA, so that no certificate of it is taken for one of hardware.
"""

from __future__ import annotations

from confcom.manifests import account_policies, collateral, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import NAMESPACE, Object, Workload, namespaced_object, rule
from confcom.manifests.tls_service import CA_KEY, SECRET_KEYS
from confcom.protocols.certificate_requests import EVENTS_CONTROLLER, GROUP, PLURAL, SIGNER

HARDWARE, SIMULATED = (
    Workload("certificate-signer", name)
    for name in ("confcom-certificate-signer", "confcom-certificate-signer-simulated")
)
HTTP_PORT = 9464
REPLICAS = 2
POLICIES_CONFIG_MAP = "confcom-certificate-policies"
"""The operator's, with a policy per service account; it need not be there."""
POLICIES_FOLDER = "/etc/confcom/certificate-policies"
REQUESTER = "confcom-certificate-requester"
"""The ClusterRole of pods that may ask; people bind it to service accounts."""


def workload_of(config: AddonConfig) -> Workload:
    """The signer of these settings."""
    return SIMULATED if config.platform == "simulated" else HARDWARE


def certificate_signer(config: AddonConfig) -> list[Object]:
    """Every object of the signer; the Deployment last, after what it uses."""
    workload = workload_of(config)
    secret, config_map = _secret(workload), _config_map(workload)
    judging = collateral.judging(config)
    rules = [
        rule(GROUP, [PLURAL], ["get", "list", "watch"]),
        rule(GROUP, [f"{PLURAL}/approval", f"{PLURAL}/status"], ["update"]),
        rule(GROUP, ["signers"], ["approve", "sign"], [SIGNER]),
        *([rule(GROUP, ["signers"], ["approve"], [*config.approve_for])] if config.approve_for else []),
        rule("events.k8s.io", ["events"], ["create", "get", "patch"]),
    ]
    own = [
        rule("", ["secrets"], ["get", "patch"], [secret]),
        rule("", ["configmaps"], ["get", "patch"], [config_map]),
    ]
    asking = [rule(GROUP, [PLURAL], ["create", "get"])]
    return [
        objects.opening(workload, ingress=(HTTP_PORT,), egress=judging.egress, more=judging.more_egress),
        objects.service_account(workload, token=True),
        # Without data: the signer writes its CA, and an apply leaves that alone.
        namespaced_object("v1", "Secret", secret, workload.component, type="Opaque"),
        namespaced_object("v1", "ConfigMap", config_map, workload.component),
        *account_policies.own_data(workload, (*SECRET_KEYS, CA_KEY)),
        *account_policies.own_pod_events(workload, EVENTS_CONTROLLER),
        *objects.role(workload, own),
        *objects.cluster_role(workload, rules),
        objects.global_object(f"{objects.RBAC}/v1", "ClusterRole", REQUESTER, workload.component, rules=asking),
        objects.disruption_budget(workload),
        objects.deployment(workload, _pod(config, workload, judging), replicas=REPLICAS),
    ]


def _secret(workload: Workload) -> str:
    return f"{workload.name}-ca"


def _config_map(workload: Workload) -> str:
    return f"confcom-attested-pods-ca{'-simulated' if workload is SIMULATED else ''}"


def _pod(config: AddonConfig, workload: Workload, judging: collateral.Judging) -> Object:
    values = {
        "http": f"[::]:{HTTP_PORT}",
        "policies": POLICIES_FOLDER,
        "namespace": NAMESPACE,
        "secret": _secret(workload),
        "config_map": _config_map(workload),
    }
    if config.approve_for:
        values["approve_for"] = ",".join(config.approve_for)
    policies = {"name": POLICIES_CONFIG_MAP, "optional": True}
    return objects.pod(
        config,
        workload,
        ["certificate-signer"],
        env=objects.settings("certificate-signer", values | judging.settings),
        ports={"http": HTTP_PORT},
        requests=objects.resources("50m", "96Mi", "384Mi"),
        volumes=[objects.tmp(), objects.volume("policies", POLICIES_FOLDER, configMap=policies), *judging.volumes],
        **judging.pod,
    )
