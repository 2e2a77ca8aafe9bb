"""The collateral service, one pod that nodes and verifiers ask; the quote provider library's configuration."""

from __future__ import annotations

import json
from typing import NamedTuple
from urllib.parse import urlsplit

from confcom.manifests import objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import COLLATERAL, ITSELF, TMP, Mounted, Object, mount
from confcom.manifests.tls_service import CA_KEY, SharedDatabase, TlsService

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
COLLATERAL_CA_FOLDER = "/etc/confcom/collateral-ca"
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
    found = objects.namespaced_object("v1", "ConfigMap", CONFIG_MAP, ITSELF.component)
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


def volumes(config: AddonConfig) -> list[Mounted]:
    """The configuration where the library looks for it, and the authority of our own service instead of the image's."""
    if not _is_configured(config):
        return []
    provider, mounts = objects.volume("quote-provider", CONFIG_FOLDER, configMap={"name": CONFIG_MAP})
    old = {"name": "quote-provider", "mountPath": OLD_PATH, "subPath": CONFIG_KEY, "readOnly": True}
    return [(provider, [*mounts, old]), *_authority(config, SYSTEM_CAS)]


def _authority(config: AddonConfig, at: str) -> list[Mounted]:
    """The authority of our own service's certificate. A pod waits until it is published, because the key is named."""
    if not config.collateral:
        return []
    items = [{"key": CA_KEY, "path": CA_KEY}]
    return [objects.volume("collateral-ca", at, configMap={"name": _service(config).config_map, "items": items})]


class Judging(NamedTuple):
    """What a service that judges quotes needs: settings, volumes, init containers, ports that it connects to."""

    settings: dict[str, str]
    volumes: list[Mounted]
    init: list[Object]
    egress: tuple[int, ...]


def judging(config: AddonConfig) -> Judging:
    """For these settings: the source of collateral, and on the simulated platform the root of the world."""
    settings = {"collateral": source(config) or "intel"}
    volumes, init = _authority(config, COLLATERAL_CA_FOLDER), []
    if config.collateral:
        settings["collateral_ca"] = f"{COLLATERAL_CA_FOLDER}/{CA_KEY}"
    if config.platform == "simulated":
        settings["trust_roots"] = simulated.TRUSTED_ROOT
        volumes += simulated.trust_volumes()
        init.append(simulated.trust_container(config))
    egress = (objects.DNS_PORT, SERVICE_PORT) if config.collateral else UPSTREAM_PORTS
    return Judging(settings, volumes, init, (*egress, *asked_ports(config)))


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
    claim = "confcom-collateral-store"
    return TlsService(COLLATERAL, SERVICE_PORT, SERVICE_PORT, secret, storage, claim, database)


def collateral(config: AddonConfig) -> list[Object]:
    """Every object of the service. A store in the pod's own folder ends with the pod, and is fetched again."""
    found = _service(config)
    egress: tuple[int, ...] = UPSTREAM_PORTS
    if config.platform == "simulated":
        egress = () if found.database is None else (objects.DNS_PORT,)
    return found.objects(
        config,
        settings=_settings(config),
        volumes=[_upstream_volume(config)],
        requests=objects.resources("50m", "128Mi", "512Mi"),
        egress=egress,
        migrates="CONFCOM_COLLATERAL_STORE",
    )


def _upstream_volume(config: AddonConfig) -> Mounted:
    if config.platform == "simulated":
        return simulated.world_volume(), [mount("world", simulated.WORLD_FOLDER, read_only=True)]
    return objects.secret_volume("upstream", UPSTREAM_SECRET, UPSTREAM_FOLDER, optional=True)


def _settings(config: AddonConfig) -> dict[str, str]:
    found = {
        "fmspcs": ",".join(config.collateral_fmspcs),
        **({"tcb_sets": ",".join(config.collateral_tcb_sets)} if config.collateral_tcb_sets else {}),
        "upstream": config.collateral_upstream,
    }
    if config.platform == "simulated":
        world = f"{simulated.WORLD_FOLDER}/{simulated.WORLD_KEY}"
        return found | {"upstream": "simulated", "simulated_machine": world}
    return found | {"upstream_key_file": f"{UPSTREAM_FOLDER}/key", "upstream_key_optional": "true"}
