"""The metrics API for HPA: its Deployment, and the APIService that sends requests for custom metrics to it.

The installer makes two CAs. The API server trusts the first one; only the metrics API has its key. Only the metrics API
trusts the second one, that of the exporters; its key is on every SGX node.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import NamedTuple

from confcom.manifests import objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import METRICS_API, NAMESPACE, IssuingCa, Mounted, Object
from confcom.protocols import custom_metrics

CA_SECRET = "confcom-metrics-api-ca"  # noqa: S105 - a name
EXPORTERS_CA_SECRET = "confcom-exporters-ca"  # noqa: S105 - a name
CA_FOLDER = "/etc/confcom/metrics-api-ca"
EXPORTERS_CA_FOLDER = "/etc/confcom/exporters-ca"
HTTPS_PORT = 8443
HTTP_PORT = 9464
SERVICE_PORT = 443
API_SERVICE = "APIService"
NAME = f"{custom_metrics.VERSION}.{custom_metrics.GROUP}"
PRIORITY = 100
REPLICAS = 2
_EXPORTERS_CA = "exporters-ca"


def metrics_api(config: AddonConfig, cas: Mapping[str, IssuingCa]) -> list[Object]:
    """Every object of the metrics API, the APIService last, so that it can answer by then.

    The installer writes APIService and CAs: an account that could write these could take over any API group.
    """
    ca = cas.get(CA_SECRET)
    rules = [
        objects.rule("", ["pods"], ["list", "watch"]),
        objects.rule("", ["configmaps"], ["get"], ["extension-apiserver-authentication"]),
    ]
    return [
        objects.opening(
            METRICS_API,
            ingress=(HTTP_PORT,),
            egress=(*config.api_ports, custom_metrics.EXPORTER_PORT),
            called=(HTTPS_PORT,),
            callers=config.api_addresses,
        ),
        objects.service_account(METRICS_API, token=True),
        *objects.ca_secrets(METRICS_API, (CA_SECRET, EXPORTERS_CA_SECRET), cas),
        *objects.cluster_role(METRICS_API, rules),
        objects.service(METRICS_API, SERVICE_PORT, "https"),
        objects.disruption_budget(METRICS_API),
        objects.deployment(METRICS_API, _pod(config), replicas=REPLICAS),
        _api_service(None if ca is None else ca.bundle),
    ]


def is_ours(api_service: Object) -> bool:
    """Whether an APIService leads to our Service."""
    service = api_service["spec"].get("service") or {}
    return (service.get("namespace"), service.get("name")) == (NAMESPACE, METRICS_API.name)


class Exporter(NamedTuple):
    """What an exporter needs to serve its page to the metrics API: settings, port, and the CA of its certificate."""

    settings: dict[str, str]
    ports: dict[str, int]
    volumes: list[Mounted]


def exporter(config: AddonConfig) -> Exporter:
    """For these settings; empty without autoscaling."""
    if not config.autoscaling:
        return Exporter({}, {}, [])
    return Exporter(
        {"https": f"[::]:{custom_metrics.EXPORTER_PORT}", "https_ca": EXPORTERS_CA_FOLDER},
        {"tls": custom_metrics.EXPORTER_PORT},
        [objects.secret_volume(_EXPORTERS_CA, EXPORTERS_CA_SECRET, EXPORTERS_CA_FOLDER)],
    )


def _pod(config: AddonConfig) -> Object:
    values = {
        "listen": f"[::]:{HTTPS_PORT}",
        "http": f"[::]:{HTTP_PORT}",
        "namespace": NAMESPACE,
        "service": METRICS_API.name,
        "ca": CA_FOLDER,
        "exporters_ca": f"{EXPORTERS_CA_FOLDER}/ca.crt",
    }
    # Without the key: the metrics API asks exporters and issues no certificate of theirs.
    public = [{"key": "ca.crt", "path": "ca.crt"}]
    return objects.pod(
        config,
        METRICS_API,
        ["metrics-api"],
        env=objects.settings("metrics-api", values),
        ports={"https": HTTPS_PORT, "http": HTTP_PORT},
        requests=objects.resources("50m", "96Mi", "384Mi"),
        volumes=[
            objects.tmp(),
            objects.secret_volume("ca", CA_SECRET, CA_FOLDER),
            objects.secret_volume(_EXPORTERS_CA, EXPORTERS_CA_SECRET, EXPORTERS_CA_FOLDER, items=public),
        ],
    )


def _api_service(bundle: bytes | None) -> Object:
    authority = {} if bundle is None else {"caBundle": b64encode(bundle).decode()}
    spec = {
        "group": custom_metrics.GROUP,
        "version": custom_metrics.VERSION,
        "service": {"namespace": NAMESPACE, "name": METRICS_API.name, "port": SERVICE_PORT},
        "groupPriorityMinimum": PRIORITY,
        "versionPriority": PRIORITY,
        **authority,
    }
    return objects.global_object("apiregistration.k8s.io/v1", API_SERVICE, NAME, METRICS_API.component, spec=spec)
