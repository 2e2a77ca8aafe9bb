"""The certificate signer: its Deployment, its CA, and the role that people give to pods that may ask it.

An instance judges real or simulated evidence, never both: the simulated one has another name
and another CA, so that no certificate of it is taken for one of hardware.
"""

from __future__ import annotations

from confcom.manifests import account_policies, attestation, collateral, objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import NAMESPACE, Mounted, Object, Workload, mount, namespaced_object, settings
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
    asked = (objects.DNS_PORT, collateral.SERVICE_PORT) if config.collateral else collateral.UPSTREAM_PORTS
    more = (*config.api_ports, *collateral.asked_ports(config))
    rules = [
        objects.rule(GROUP, [PLURAL], ["get", "list", "watch"]),
        objects.rule(GROUP, [f"{PLURAL}/approval", f"{PLURAL}/status"], ["update"]),
        objects.rule(GROUP, ["signers"], ["approve", "sign"], [SIGNER]),
        *([objects.rule(GROUP, ["signers"], ["approve"], [*config.approve_for])] if config.approve_for else []),
        objects.rule("events.k8s.io", ["events"], ["create", "get", "patch"]),
    ]
    own = [
        objects.rule("", ["secrets"], ["get", "patch"], [secret]),
        objects.rule("", ["configmaps"], ["get", "patch"], [config_map]),
    ]
    asking = [objects.rule(GROUP, [PLURAL], ["create", "get"])]
    pod = _pod(config, workload) | {"dnsPolicy": "ClusterFirst", **simulated.trust_container(config)}
    return [
        objects.opening(workload, ingress=(HTTP_PORT,), egress=asked, more=more),
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
        objects.deployment(workload, pod, replicas=REPLICAS),
    ]


def _secret(workload: Workload) -> str:
    return f"{workload.name}-ca"


def _config_map(workload: Workload) -> str:
    return f"confcom-attested-pods-ca{'-simulated' if workload is SIMULATED else ''}"


def _pod(config: AddonConfig, workload: Workload) -> Object:
    values = {
        "http": f"[::]:{HTTP_PORT}",
        "policies": POLICIES_FOLDER,
        "collateral": collateral.source(config) or "intel",
        "namespace": NAMESPACE,
        "secret": _secret(workload),
        "config_map": _config_map(workload),
    }
    optional = {"name": "policies", "configMap": {"name": POLICIES_CONFIG_MAP, "optional": True}}
    volumes: list[Mounted] = [(optional, mount("policies", POLICIES_FOLDER, read_only=True))]
    if config.collateral:
        values["collateral_ca"] = f"{attestation.COLLATERAL_CA_FOLDER}/{CA_KEY}"
        authority = mount("collateral-ca", attestation.COLLATERAL_CA_FOLDER, read_only=True)
        volumes.append((collateral.authority_volume(config), authority))
    if config.approve_for:
        values["approve_for"] = ",".join(config.approve_for)
    if config.platform == "simulated":
        values["trust_roots"] = simulated.TRUSTED_ROOT
    return objects.cluster_pod(
        config,
        workload,
        ["certificate-signer"],
        env=settings("certificate-signer", values),
        ports={"http": HTTP_PORT},
        requests=("50m", "96Mi", "384Mi"),
        volumes=volumes + simulated.trust_volumes(config),
    )
