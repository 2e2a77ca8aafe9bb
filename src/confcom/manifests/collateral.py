"""The collateral service: one pod in the cluster that all nodes and verifiers ask, by the paths of Intel's PCCS."""

from __future__ import annotations

from confcom.manifests import account_policies, certification, rbac, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    CLUSTER_CRITICAL,
    COLLATERAL,
    NAMESPACE,
    TMP,
    USER,
    Object,
    asks_by_name,
    confined,
    container,
    deployment,
    http_probes,
    mount,
    namespaced_object,
    resources,
    service,
    service_account,
    settings,
    tmp_volume,
)

PORT = certification.SERVICE_PORT
STORE_FOLDER = "/var/lib/confcom"
CLAIM = "confcom-collateral-store"
TLS_SECRET = "confcom-collateral-tls"  # noqa: S105 - a name
SECRET_KEYS = ("tls.crt", "tls.key", "tls.since", "next.crt", "next.key", "ca.crt")
"""What the service keeps in its Secret."""
UPSTREAM_SECRET = "confcom-collateral-upstream"  # noqa: S105 - a name
"""The operator's, with Intel's subscription key, or the token of a PCCS, under `key`; it need not be there."""
UPSTREAM_FOLDER = "/etc/confcom/upstream"


def collateral(config: AddonConfig) -> list[Object]:
    """Everything but network policy; the Deployment last, when there is what it asks for."""
    made = deployment(COLLATERAL, _pod(config), replicas=1)
    if config.collateral_storage:
        # A volume is in one place at a time: a successor would wait for it until its predecessor has gone.
        made["spec"]["strategy"] = {"type": "Recreate"}
    return [
        service_account(COLLATERAL, token=True),
        # Empty: the service makes its certificate and says whose it is, and nothing applied here takes these away.
        namespaced_object("v1", "Secret", TLS_SECRET, COLLATERAL.component, type="Opaque"),
        namespaced_object("v1", "ConfigMap", certification.CA_CONFIG_MAP, COLLATERAL.component),
        *account_policies.own_data((*SECRET_KEYS, certification.CA_KEY)),
        *_rights(config),
        *_claim(config),
        service(COLLATERAL, PORT, "https"),
        made,
    ]


def _rights(config: AddonConfig) -> list[Object]:
    return rbac.role(
        COLLATERAL,
        [
            rbac.rule("", ["secrets"], ["get"], [_tls_secret(config)]),
            rbac.rule("", ["secrets"], ["patch"], [TLS_SECRET]),
            rbac.rule("", ["configmaps"], ["get", "patch"], [certification.CA_CONFIG_MAP]),
        ],
    )


def _claim(config: AddonConfig) -> list[Object]:
    if not config.collateral_storage:
        return []
    storage_class, _, size = config.collateral_storage.rpartition("/")
    spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    return [namespaced_object("v1", "PersistentVolumeClaim", CLAIM, COLLATERAL.component, spec=spec)]


def _pod(config: AddonConfig) -> Object:
    volumes, mounts = _volumes(config)
    return {
        **asks_by_name(config),
        "automountServiceAccountToken": True,
        "priorityClassName": CLUSTER_CRITICAL,
        "securityContext": {"fsGroup": USER},
        "terminationGracePeriodSeconds": 30,
        "containers": [
            container(
                config,
                COLLATERAL.component,
                ["collateral", "serve"],
                env=settings("collateral-service", _values(config)),
                ports=[{"name": "https", "containerPort": PORT, "protocol": "TCP"}],
                resources=resources("50m", "128Mi", "512Mi"),
                securityContext=confined(),
                volumeMounts=mounts,
                **http_probes("https", tls=True),
            )
        ],
        "volumes": volumes,
    }


def _volumes(config: AddonConfig) -> tuple[list[Object], list[Object]]:
    """Volumes and mounts. What a store in the pod's own folder had is fetched again after the pod.

    The folder has room for uploads beside the store.
    """
    lasting = {"persistentVolumeClaim": {"claimName": CLAIM}}
    store = lasting if config.collateral_storage else {"emptyDir": {"sizeLimit": "1Gi"}}
    volumes: list[Object] = [tmp_volume(), {"name": "store", **store}]
    mounts = [mount("tmp", TMP), mount("store", STORE_FOLDER)]
    if config.platform == "simulated":
        return [*volumes, simulated.world_volume()], [*mounts, mount("world", simulated.WORLD_FOLDER, read_only=True)]
    key = {"secretName": UPSTREAM_SECRET, "optional": True, "defaultMode": 0o440}
    return [*volumes, {"name": "upstream", "secret": key}], [
        *mounts,
        mount("upstream", UPSTREAM_FOLDER, read_only=True),
    ]


def _values(config: AddonConfig) -> dict[str, str]:
    found = {
        "listen": f"[::]:{PORT}",
        "tls_secret": _tls_secret(config),
        "tls_given": "true" if config.collateral_tls_secret else "false",
        "tls_config_map": certification.CA_CONFIG_MAP,
        "tls_namespace": NAMESPACE,
        "tls_service": COLLATERAL.name,
        "store": f"{STORE_FOLDER}/collateral.sqlite",
        "fmspcs": ",".join(config.collateral_fmspcs),
        "upstream": config.collateral_upstream,
    }
    if config.platform == "simulated":
        world = f"{simulated.WORLD_FOLDER}/{simulated.WORLD_KEY}"
        return found | {"upstream": "simulated", "simulated_machine": world}
    return found | {"upstream_key_file": f"{UPSTREAM_FOLDER}/key", "upstream_key_optional": "true"}


def _tls_secret(config: AddonConfig) -> str:
    return config.collateral_tls_secret or TLS_SECRET
