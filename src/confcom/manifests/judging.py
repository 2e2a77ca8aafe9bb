"""The services that judge evidence in a cluster: the attestation service and the certificate signer.

The attestation service is one pod that relying parties ask; its policies, audit record and keys are on a volume. The
certificate signer has a Deployment, its CA, and the role that people give to pods that may ask it.

An instance judges real or simulated evidence, never both: the simulated one has another name, and so another host,
certificate, volume and CA. No certificate of it is taken for one of hardware.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from confcom.manifests import account_policies, collateral, objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import NAMESPACE, Component, Mounted, Object, Workload, rule
from confcom.manifests.tls_service import FOLDER, SharedDatabase, TlsService, own_data, own_data_rules
from confcom.protocols.certificate_requests import EVENTS_CONTROLLER, GROUP, PLURAL, SIGNER

ATTESTATION = Workload("attestation", "confcom-attestation")
ATTESTATION_SIMULATED = Workload("attestation", "confcom-attestation-simulated")
CLAIM_SUFFIX = "-state"
"""Of the claim of its volume with policies, audit record and signing keys, after its name."""
PORT = 8443
SERVICE_PORT = 443
ADMIN_SECRET = "confcom-attestation-admin"  # noqa: S105 - a name
"""The operator's, unless the settings name another: with the file of administrators under `ADMIN_KEY`, and the files
that it names. It need not be there."""
ADMIN_KEY = "administrators.toml"
ADMIN_FOLDER = "/etc/confcom/administrators"
PIN_FOLDER = "/etc/confcom/pin"
PIN_KEY = "pin"
KEYS_FOLDER = "/etc/confcom/attestation-keys"
"""With a database: the operator's Secret with the signing keys, which all pods have."""


def attestation(config: AddonConfig) -> list[Object]:
    """Every object of the service."""
    workload = ATTESTATION_SIMULATED if config.platform == "simulated" else ATTESTATION
    secret, storage, claim = config.attestation_tls_secret, config.attestation_storage, f"{workload.name}{CLAIM_SUFFIX}"
    found = TlsService(workload, PORT, SERVICE_PORT, secret, storage, claim, _database(config))
    judging = collateral.judging(config)
    return found.objects(
        config,
        settings=_settings(config, found.host) | judging.settings,
        volumes=[*_volumes(config, workload), *judging.volumes],
        requests=objects.resources("100m", "128Mi", "512Mi"),
        egress=judging.egress,
        migrates="CONFCOM_ATTESTATION_SERVICE_STORE",
        init=judging.init,
    )


def _database(config: AddonConfig) -> SharedDatabase | None:
    if not config.attestation_database:
        return None
    return SharedDatabase(config.attestation_database, config.attestation_database_port, config.attestation_replicas)


def _settings(config: AddonConfig, host: str) -> dict[str, str]:
    found = {
        "url": config.attestation_url or f"https://{host}",
        "keys": _keys(config),
        "administrators": f"{ADMIN_FOLDER}/{ADMIN_KEY}",
        "administrators_optional": "true",
    }
    if config.attestation_url:
        found["tls_hosts"] = urlsplit(config.attestation_url).hostname or ""
    return found


def _keys(config: AddonConfig) -> str:
    if config.attestation_keys:
        return f"{config.attestation_keys}&pin-source={PIN_FOLDER}/{PIN_KEY}"
    return KEYS_FOLDER if config.attestation_database else f"{FOLDER}/attestation-keys"


def _volumes(config: AddonConfig, workload: Workload) -> list[Mounted]:
    administrators = config.attestation_administrators or ADMIN_SECRET
    found = [objects.secret_volume("administrators", administrators, ADMIN_FOLDER, optional=True)]
    if config.attestation_keys:
        found.append(objects.secret_volume("pin", config.attestation_pin_secret, PIN_FOLDER))
    elif config.attestation_database:
        found.append(objects.secret_volume("keys", f"{workload.name}-keys", KEYS_FOLDER))
    return found


CERTIFICATE_SIGNER = Workload("certificate-signer", "confcom-certificate-signer")
CERTIFICATE_SIGNER_SIMULATED = Workload("certificate-signer", "confcom-certificate-signer-simulated")
HTTP_PORT = 9464
REPLICAS = 2
POLICIES_CONFIG_MAP = "confcom-certificate-policies"
"""The operator's, with a policy per service account; it need not be there."""
POLICIES_FOLDER = "/etc/confcom/certificate-policies"
REQUESTER = "confcom-certificate-requester"
"""The ClusterRole of pods that may ask; people bind it to service accounts."""


def certificate_signer(config: AddonConfig) -> list[Object]:
    """Every object of the signer; the Deployment last, after what it uses."""
    workload = CERTIFICATE_SIGNER_SIMULATED if config.platform == "simulated" else CERTIFICATE_SIGNER
    secret = f"{workload.name}-ca"
    config_map = f"confcom-attested-pods-ca{'-simulated' if workload is CERTIFICATE_SIGNER_SIMULATED else ''}"
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
