"""The collateral service, one pod that nodes and verifiers ask; the quote provider library's configuration."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from confcom.manifests import objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    COLLATERAL,
    ITSELF,
    TMP,
    Mounted,
    Object,
    asks_by_name,
    mount,
    namespaced_object,
)
from confcom.manifests.tls_service import CA_KEY, FOLDER, SharedDatabase, TlsService

# Intel's quote provider library reads its configuration once, when it is loaded: from `QCNL_CONF_PATH`, or before that
# variable existed from a fixed path. It takes TLS roots from the system's folder; no setting names others.
CONFIG_MAP = "confcom-quote-provider"
CONFIG_KEY = "sgx_default_qcnl.conf"
CONFIG_FOLDER = "/etc/confcom/quote-provider"
OLD_PATH = f"/etc/{CONFIG_KEY}"
SYSTEM_CAS = "/etc/ssl/certs"
"""Where programs of Debian and Ubuntu, those over libcurl too, look for the authorities of TLS certificates."""
UPSTREAM_PORTS = (objects.DNS_PORT, 80, 443, 8081)
"""Ports of Intel's service, of a cloud's cache (Azure's for a node is at port 80), and of a PCCS."""
SERVICE_PORT = 8081
PATH = "/sgx/certification/v4/"


def source(config: AddonConfig) -> str:
    """URL of the service, without the interface's path; empty if only the image may name one."""
    if config.collateral:
        return f"https://{_service(config).host}:{SERVICE_PORT}"
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
    return [*found, authority_volume(config)] if config.collateral else found


def authority_volume(config: AddonConfig) -> Object:
    """The authority of our own service's certificate. A pod waits until it is published, because the key is named."""
    items = [{"key": CA_KEY, "path": CA_KEY}]
    return {"name": "collateral-ca", "configMap": {"name": _service(config).config_map, "items": items}}


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


UPSTREAM_SECRET = "confcom-collateral-upstream"  # noqa: S105 - a name
"""The operator's, with Intel's subscription key, or the token of a PCCS, under `key`; it need not be there."""
UPSTREAM_FOLDER = "/etc/confcom/upstream"


def _service(config: AddonConfig) -> TlsService:
    secret, storage, database = config.collateral_tls_secret, config.collateral_storage, None
    if config.collateral_database:
        port, replicas = config.collateral_database_port, config.collateral_replicas
        database = SharedDatabase(config.collateral_database, port, replicas)
    return TlsService(COLLATERAL, SERVICE_PORT, secret, storage, claim="confcom-collateral-store", database=database)


def collateral(config: AddonConfig) -> list[Object]:
    """Every object of the service. A store in the pod's own folder ends with the pod, and is fetched again.

    That folder has room for uploads beside the store.
    """
    found = _service(config)
    egress: tuple[int, ...] = () if config.platform == "simulated" else UPSTREAM_PORTS
    env, volumes = found.settings("collateral-service", _values(config)), [_upstream_volume(config)]
    more, placed = config.api_ports, asks_by_name(config)
    shared = []
    if (database := found.database) is not None:
        env += database.settings("CONFCOM_COLLATERAL_SERVICE_STORE")
        volumes.append(database.volume())
        egress, more, placed = egress or (objects.DNS_PORT,), (*more, database.port), {"dnsPolicy": "ClusterFirst"}
        migration = database.migration(config, COLLATERAL, "CONFCOM_COLLATERAL_STORE")
        shared = [objects.disruption_budget(COLLATERAL), *migration]
    pod = found.pod(config, ["collateral", "serve"], env, volumes, requests=("50m", "128Mi", "512Mi"))
    opening = objects.opening(COLLATERAL, ingress=(SERVICE_PORT,), egress=egress, more=more)
    return [*shared, *found.objects(opening=opening, service_port=SERVICE_PORT, pod=pod | placed)]


def _upstream_volume(config: AddonConfig) -> Mounted:
    if config.platform == "simulated":
        return simulated.world_volume(), mount("world", simulated.WORLD_FOLDER, read_only=True)
    return objects.secret_volume("upstream", UPSTREAM_SECRET, UPSTREAM_FOLDER, optional=True)


def _values(config: AddonConfig) -> dict[str, str]:
    found = {
        **({} if config.collateral_database else {"store": f"{FOLDER}/collateral.sqlite"}),
        "fmspcs": ",".join(config.collateral_fmspcs),
        **({"tcb_sets": ",".join(config.collateral_tcb_sets)} if config.collateral_tcb_sets else {}),
        "upstream": config.collateral_upstream,
    }
    if config.platform == "simulated":
        world = f"{simulated.WORLD_FOLDER}/{simulated.WORLD_KEY}"
        return found | {"upstream": "simulated", "simulated_machine": world}
    return found | {"upstream_key_file": f"{UPSTREAM_FOLDER}/key", "upstream_key_optional": "true"}
