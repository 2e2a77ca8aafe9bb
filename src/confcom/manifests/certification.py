"""Where Intel's quote provider library gets PCK certificates and collateral: its configuration, and whom it trusts.

The library reads it once, when it is loaded: `QCNL_CONF_PATH`, or before that variable existed a path of its own. It
takes its TLS roots from where the system has them, and nothing tells it of others.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import COLLATERAL, ITSELF, NAMESPACE, TMP, Object, mount, namespaced_object

CONFIG_MAP = "confcom-quote-provider"
CONFIG_KEY = "sgx_default_qcnl.conf"
CONFIG_FOLDER = "/etc/confcom/quote-provider"
OLD_PATH = f"/etc/{CONFIG_KEY}"
CA_CONFIG_MAP = "confcom-collateral-ca"
CA_KEY = "ca-certificates.crt"
SYSTEM_CAS = "/etc/ssl/certs"
"""Where programs of Debian and Ubuntu, those over libcurl too, look for the authorities of TLS certificates."""
SERVICE_PORT = 8081
PATH = "/sgx/certification/v4/"


def source(config: AddonConfig) -> str:
    """The service that answers, without a path of the interface; empty where only the image may know one."""
    if config.collateral:
        return f"https://{COLLATERAL.name}.{NAMESPACE}.svc:{SERVICE_PORT}"
    return config.collateral_url.partition("/sgx/certification")[0].rstrip("/")


def asked_ports(config: AddonConfig) -> tuple[int, ...]:
    """The port of an operator's own service."""
    if config.collateral or not _is_configured(config):
        return ()
    return (urlsplit(config.collateral_url).port or 443,)


def quote_provider(config: AddonConfig) -> list[Object]:
    """The library's configuration as a ConfigMap, for the quote helper and for whoever quotes by himself."""
    if not _is_configured(config):
        return []
    found = namespaced_object("v1", "ConfigMap", CONFIG_MAP, ITSELF.component)
    return [found | {"data": {CONFIG_KEY: qcnl_conf(source(config))}}]


def qcnl_conf(base: str) -> str:
    """The configuration in the library's JSON; what has another type than it expects, it passes over in silence."""
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
    """The configuration, and for our own service nobody's authority but its own."""
    if not _is_configured(config):
        return []
    found: list[Object] = [{"name": "quote-provider", "configMap": {"name": CONFIG_MAP}}]
    if config.collateral:
        # With the key named, a pod waits until the service has published its authority.
        items = [{"key": CA_KEY, "path": CA_KEY}]
        found.append({"name": "collateral-ca", "configMap": {"name": CA_CONFIG_MAP, "items": items}})
    return found


def mounts(config: AddonConfig) -> list[Object]:
    """Where the library looks."""
    if not _is_configured(config):
        return []
    found = [
        mount("quote-provider", CONFIG_FOLDER, read_only=True),
        {"name": "quote-provider", "mountPath": OLD_PATH, "subPath": CONFIG_KEY, "readOnly": True},
    ]
    return [*found, mount("collateral-ca", SYSTEM_CAS, read_only=True)] if config.collateral else found


def environment(config: AddonConfig) -> list[Object]:
    """Where the library finds its configuration, and where it may keep what it fetched."""
    if config.platform != "intel":
        return []
    cache = {"name": "AZDCAP_CACHE", "value": TMP}
    return [cache, *([{"name": "QCNL_CONF_PATH", "value": f"{CONFIG_FOLDER}/{CONFIG_KEY}"}] if source(config) else [])]


def verifying(config: AddonConfig) -> dict[str, str]:
    """The quote helper's settings for judging its own quotes by the same service."""
    if not _is_configured(config):
        return {}
    return {"collateral": source(config), "collateral_ca": f"{SYSTEM_CAS}/{CA_KEY}"}


def remark(config: AddonConfig) -> str:
    """What whoever enables the quote helper should know; empty if nothing."""
    if config.platform != "intel" or not config.quote_helper or source(config):
        return ""
    return (
        f"the quote helper gets its PCK certificates from whom its image names in {OLD_PATH}: --enable-collateral or "
        "--collateral-url says whom to ask"
    )


def _is_configured(config: AddonConfig) -> bool:
    return config.platform == "intel" and bool(source(config))
