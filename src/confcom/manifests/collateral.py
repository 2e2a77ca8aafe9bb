"""The collateral service, one pod that nodes and verifiers ask; the quote provider library's configuration."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from confcom.manifests import account_policies, objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    CLUSTER_CRITICAL,
    COLLATERAL,
    ITSELF,
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

# Intel's quote provider library reads its configuration once, when it is loaded: from `QCNL_CONF_PATH`, or before that
# variable existed from a fixed path. It takes TLS roots from the system's folder; no setting names others.
CONFIG_MAP = "confcom-quote-provider"
CONFIG_KEY = "sgx_default_qcnl.conf"
CONFIG_FOLDER = "/etc/confcom/quote-provider"
OLD_PATH = f"/etc/{CONFIG_KEY}"
CA_CONFIG_MAP = "confcom-collateral-ca"
CA_KEY = "ca-certificates.crt"
SYSTEM_CAS = "/etc/ssl/certs"
"""Where programs of Debian and Ubuntu, those over libcurl too, look for the authorities of TLS certificates."""
UPSTREAM_PORTS = (objects.DNS_PORT, 80, 443, 8081)
"""Ports of Intel's service, of a cloud's cache (Azure's for a node is at port 80), and of a PCCS."""
SERVICE_PORT = 8081
PATH = "/sgx/certification/v4/"


def source(config: AddonConfig) -> str:
    """URL of the service, without the interface's path; empty if only the image may name one."""
    if config.collateral:
        return f"https://{COLLATERAL.name}.{NAMESPACE}.svc:{SERVICE_PORT}"
    return config.collateral_url.partition("/sgx/certification")[0].rstrip("/")


def asked_ports(config: AddonConfig) -> tuple[int, ...]:
    """The port of an operator's own PCCS, if the quote helpers use one."""
    if config.collateral or not _is_configured(config):
        return ()
    return (urlsplit(config.collateral_url).port or 443,)


def quote_provider(config: AddonConfig) -> list[Object]:
    """The library's configuration as a ConfigMap, for the quote helper and for applications that quote in-proc."""
    if not _is_configured(config):
        return []
    found = namespaced_object("v1", "ConfigMap", CONFIG_MAP, ITSELF.component)
    return [found | {"data": {CONFIG_KEY: qcnl_conf(source(config))}}]


def qcnl_conf(base: str) -> str:
    """The configuration in the library's JSON. The library ignores a value of another type silently."""
    values = {
        "pccs_url": f"{base}{PATH}",
        "use_secure_cert": True,
        "collateral_service": f"{base}{PATH}",
        # Its own six tries, ten seconds apart, would hold a request for a minute; ours are over after 12.5 s.
        "retry_times": 1,
        "retry_delay": 1,
        "pck_cache_expire_hours": 168,
        "verify_collateral_cache_expire_hours": 24,
        "local_cache_only": False,
    }
    return json.dumps(values, indent=2) + "\n"


def volumes(config: AddonConfig) -> list[Object]:
    """The configuration, and the authority of our own service, which replaces the image's authorities."""
    if not _is_configured(config):
        return []
    found: list[Object] = [{"name": "quote-provider", "configMap": {"name": CONFIG_MAP}}]
    if config.collateral:
        # Because the key is named, a pod waits until the service has published its authority.
        items = [{"key": CA_KEY, "path": CA_KEY}]
        found.append({"name": "collateral-ca", "configMap": {"name": CA_CONFIG_MAP, "items": items}})
    return found


def mounts(config: AddonConfig) -> list[Object]:
    """Mounts at the paths where the library looks."""
    if not _is_configured(config):
        return []
    found = [
        mount("quote-provider", CONFIG_FOLDER, read_only=True),
        {"name": "quote-provider", "mountPath": OLD_PATH, "subPath": CONFIG_KEY, "readOnly": True},
    ]
    return [*found, mount("collateral-ca", SYSTEM_CAS, read_only=True)] if config.collateral else found


def environment(config: AddonConfig) -> list[Object]:
    """Variables that name the library's configuration, and the folder of its cache."""
    if config.platform != "intel":
        return []
    cache = {"name": "AZDCAP_CACHE", "value": TMP}
    return [*([{"name": "QCNL_CONF_PATH", "value": f"{CONFIG_FOLDER}/{CONFIG_KEY}"}] if source(config) else []), cache]


def verifying(config: AddonConfig) -> dict[str, str]:
    """Settings by which the quote helper verifies its own quotes with the same service."""
    if not _is_configured(config):
        return {}
    return {"collateral": source(config), "collateral_ca": f"{SYSTEM_CAS}/{CA_KEY}"}


def remark(config: AddonConfig) -> str:
    """A remark for the operator who enables the quote helper; empty if there is none."""
    if config.platform != "intel" or not config.quote_helper or source(config):
        return ""
    return (
        f"the quote helper gets its PCK certificates from the service that its image names in {OLD_PATH}: "
        "--enable-collateral or --collateral-url names another"
    )


def _is_configured(config: AddonConfig) -> bool:
    return config.platform == "intel" and bool(source(config))


PORT = SERVICE_PORT
STORE_FOLDER = "/var/lib/confcom"
CLAIM = "confcom-collateral-store"
TLS_SECRET = "confcom-collateral-tls"  # noqa: S105 - a name
SECRET_KEYS = ("tls.crt", "tls.key", "tls.since", "next.crt", "next.key", "ca.crt")
"""What the service keeps in its Secret."""
UPSTREAM_SECRET = "confcom-collateral-upstream"  # noqa: S105 - a name
"""The operator's, with Intel's subscription key, or the token of a PCCS, under `key`; it need not be there."""
UPSTREAM_FOLDER = "/etc/confcom/upstream"


def collateral(config: AddonConfig) -> list[Object]:
    """Every object of the service; the Deployment last, after what it uses."""
    made = deployment(COLLATERAL, _pod(config), replicas=1)
    if config.collateral_storage:
        # A volume is in one place at a time: a successor would wait for it until its predecessor has gone.
        made["spec"]["strategy"] = {"type": "Recreate"}
    egress = () if config.platform == "simulated" else UPSTREAM_PORTS
    return [
        objects.opening(COLLATERAL, ingress=(PORT,), egress=egress, more=config.api_ports),
        service_account(COLLATERAL, token=True),
        # Without data: the service writes its certificate and its CA, and an apply leaves both alone.
        namespaced_object("v1", "Secret", TLS_SECRET, COLLATERAL.component, type="Opaque"),
        namespaced_object("v1", "ConfigMap", CA_CONFIG_MAP, COLLATERAL.component),
        *account_policies.own_data((*SECRET_KEYS, CA_KEY)),
        *_rights(config),
        *_claim(config),
        service(COLLATERAL, PORT, "https"),
        made,
    ]


def _rights(config: AddonConfig) -> list[Object]:
    return objects.role(
        COLLATERAL,
        [
            objects.rule("", ["secrets"], ["get"], [_tls_secret(config)]),
            objects.rule("", ["secrets"], ["patch"], [TLS_SECRET]),
            objects.rule("", ["configmaps"], ["get", "patch"], [CA_CONFIG_MAP]),
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
    """Volumes and mounts. A store in the pod's own folder ends with the pod, and is fetched again.

    That folder has room for uploads beside the store.
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
        "tls_config_map": CA_CONFIG_MAP,
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
