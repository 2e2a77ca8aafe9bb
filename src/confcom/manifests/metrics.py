"""Metrics for people and for HPA: the exporter of EPC use on every SGX node, and the metrics API.

The exporter reads which enclave memory the processes of a node have mapped, and watches limits. For the metrics API the
installer makes two CAs. The API server trusts the first one; only the metrics API has its key. Only the metrics API
trusts the second one, that of the exporters; its key is on every SGX node.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import NamedTuple

from confcom.manifests import account_policies, objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    METRICS,
    METRICS_API,
    NAMESPACE,
    Component,
    IssuingCa,
    Mounted,
    Object,
    host_path,
    rule,
)
from confcom.protocols import custom_metrics

HTTP_PORT = 9466
HOST = "/host"

CA_SECRET = "confcom-metrics-api-ca"  # noqa: S105 - a name
EXPORTERS_CA_SECRET = "confcom-exporters-ca"  # noqa: S105 - a name
CA_FOLDER = "/etc/confcom/metrics-api-ca"
EXPORTERS_CA_FOLDER = "/etc/confcom/exporters-ca"
API_HTTPS_PORT = 8443
API_HTTP_PORT = 9464
API_SERVICE_PORT = 443
API_SERVICE = "APIService"
API_SERVICE_NAME = f"{custom_metrics.VERSION}.{custom_metrics.GROUP}"
PRIORITY = 100
REPLICAS = 2
_EXPORTERS_CA = "exporters-ca"


def metrics(config: AddonConfig) -> list[Object]:
    """Every object of the exporter."""
    found = exporter(config)
    settings = {"host_root": HOST, "enforce": "auto" if config.epc_enforcement else "off"}
    node = host_path("dev", "/dev", at=f"{HOST}/dev")
    if config.platform == "simulated":
        settings["simulated_node"] = simulated.NODE_FOLDER
        node = simulated.node_folder(read_only=True)
    component = Component(
        workload=METRICS,
        settings=settings | found.settings,
        env=[objects.from_pod("CONFCOM_METRICS_NODE_NAME", "spec.nodeName")],
        ports={"http": HTTP_PORT, **found.ports},
        requests=objects.resources("20m", "64Mi", "256Mi"),
        # To read the maps of other users' processes, which AppArmor's usual profile allows among containers only.
        security=objects.confined(user=0, add=("SYS_PTRACE",)) | {"appArmorProfile": {"type": "Unconfined"}},
        volumes=[
            host_path("proc", "/proc", at=f"{HOST}/proc"),
            host_path("nodes", "/sys/devices/system/node", at=f"{HOST}/sys/devices/system/node"),
            # Writable for misc.max only. A process that may write there can limit memory and CPU of any pod.
            host_path("cgroup", "/sys/fs/cgroup", at=f"{HOST}/sys/fs/cgroup", read_only=not config.epc_enforcement),
            node,
            *found.volumes,
        ],
        cluster_rules=[
            rule("", ["pods"], ["list", "watch"]),
            rule("", ["nodes"], ["get"]),
            rule("resource.k8s.io", ["resourceclaims"], ["get"]),
            rule("events.k8s.io", ["events"], ["create", "get", "patch"]),
        ],
        pod={"terminationGracePeriodSeconds": 10},
    )
    return [*account_policies.own_events(), *component.objects(config)]


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
        {"https_ca": EXPORTERS_CA_FOLDER},
        {"tls": custom_metrics.EXPORTER_PORT},
        [objects.secret_volume(_EXPORTERS_CA, EXPORTERS_CA_SECRET, EXPORTERS_CA_FOLDER)],
    )


def metrics_api(config: AddonConfig, cas: Mapping[str, IssuingCa]) -> list[Object]:
    """Every object of the metrics API, the APIService last, so that it can answer by then.

    The installer writes APIService and CAs: an account that could write these could take over any API group.
    """
    # Without the key: the metrics API asks exporters and issues no certificate of theirs.
    public = [{"key": "ca.crt", "path": "ca.crt"}]
    component = Component(
        workload=METRICS_API,
        replicas=REPLICAS,
        settings={
            "namespace": NAMESPACE,
            "service": METRICS_API.name,
            "ca": CA_FOLDER,
            "exporters_ca": f"{EXPORTERS_CA_FOLDER}/ca.crt",
        },
        ports={"https": API_HTTPS_PORT, "http": API_HTTP_PORT},
        called="https",
        service_port=API_SERVICE_PORT,
        requests=objects.resources("50m", "96Mi", "384Mi"),
        volumes=[
            objects.secret_volume("ca", CA_SECRET, CA_FOLDER),
            objects.secret_volume(_EXPORTERS_CA, EXPORTERS_CA_SECRET, EXPORTERS_CA_FOLDER, items=public),
        ],
        egress=(custom_metrics.EXPORTER_PORT,),
        cluster_rules=[
            rule("", ["pods"], ["list", "watch"]),
            rule("", ["configmaps"], ["get"], ["extension-apiserver-authentication"]),
        ],
    )
    ca = cas.get(CA_SECRET)
    return [
        *objects.ca_secrets(METRICS_API, (CA_SECRET, EXPORTERS_CA_SECRET), cas),
        *component.objects(config),
        _api_service(None if ca is None else ca.bundle),
    ]


def is_ours(api_service: Object) -> bool:
    """Whether an APIService leads to our Service."""
    service = api_service["spec"].get("service") or {}
    return (service.get("namespace"), service.get("name")) == (NAMESPACE, METRICS_API.name)


def _api_service(bundle: bytes | None) -> Object:
    authority = {} if bundle is None else {"caBundle": b64encode(bundle).decode()}
    spec = {
        "group": custom_metrics.GROUP,
        "version": custom_metrics.VERSION,
        "service": {"namespace": NAMESPACE, "name": METRICS_API.name, "port": API_SERVICE_PORT},
        "groupPriorityMinimum": PRIORITY,
        "versionPriority": PRIORITY,
        **authority,
    }
    component = METRICS_API.component
    return objects.global_object("apiregistration.k8s.io/v1", API_SERVICE, API_SERVICE_NAME, component, spec=spec)
