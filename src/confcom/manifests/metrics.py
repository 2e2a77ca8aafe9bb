"""Metrics for people and for HPA: the exporter of EPC use on every SGX node, the metrics API, and how Prometheus finds
what the add-on exports.

The exporter reads which enclave memory the processes of a node have mapped, and watches limits. For the metrics API the
installer makes two CAs. The API server trusts the first one; only the metrics API has its key. Only the metrics API
trusts the second one, that of the exporters; its key is on every SGX node.

For Prometheus there are Services, and monitors and alerts where its operator runs. Without the operator the Services
have the annotations that common configurations of Prometheus look for, and the alerts are in
`deploy/prometheus/rules.yaml`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import NamedTuple

from confcom.formats.yaml_text import read_yaml
from confcom.manifests import account_policies, objects, simulated
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    COMPONENT,
    METRICS,
    METRICS_API,
    NAMESPACE,
    Component,
    IssuingCa,
    Mounted,
    Object,
    Workload,
    host_path,
    namespaced_object,
    rule,
    selector,
)
from confcom.manifests.tls_service import CA_KEY
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


API = "monitoring.coreos.com/v1"
INTERVAL = "30s"
_NODE = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}


class Page(NamedTuple):
    """A page for Prometheus at `port` of a component's pods; without a port at its Service, over TLS."""

    workload: Workload
    port: int | None

    @property
    def service(self) -> str:
        """The name of its Service."""
        name = self.workload.name
        return name if self.port is None or name.endswith("metrics") else f"{name}-metrics"


def monitoring(config: AddonConfig, components: Iterable[Object], *, operator: bool) -> list[Object]:
    """Every object for Prometheus, by the objects of the components that run.

    `operator`: whether the cluster has the kinds of the Prometheus operator.
    """
    mode = config.monitoring
    if mode == "auto":
        mode = "operator" if operator else "annotations"
    if mode == "off":
        return []
    pages = _pages(components)
    found = [_service(page, page.port, annotated=mode == "annotations") for page in pages if page.port is not None]
    if mode == "operator":
        found += [*(_monitor(config, page) for page in pages), _rules(config, pages)]
    return found


def _pages(components: Iterable[Object]) -> list[Page]:
    """The page of each workload: at the port `http` of its container, or else at its Service."""
    found = []
    for one in components:
        if one["kind"] in ("DaemonSet", "Deployment"):
            (container,) = one["spec"]["template"]["spec"]["containers"]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            found.append(Page(Workload(container["name"], one["metadata"]["name"]), ports.get("http")))
    return found


def _service(page: Page, port: int, *, annotated: bool) -> Object:
    """A headless Service: only its endpoints are used. Pods that are not ready are scraped too."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": selector(page.workload.component),
        "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}],
    }
    found = namespaced_object("v1", "Service", page.service, page.workload.component, spec=spec)
    if annotated:
        found["metadata"]["annotations"] = {"prometheus.io/scrape": "true", "prometheus.io/port": str(port)}
    return found


def _monitor(config: AddonConfig, page: Page) -> Object:
    endpoint: Object = {"port": "http", "interval": INTERVAL}
    if page.port is None:
        ca = {"configMap": {"name": f"{page.service}-ca", "key": CA_KEY}}
        tls = {"ca": ca, "serverName": objects.names_of(page.workload)[0]}
        endpoint |= {"port": "https", "scheme": "https", "tlsConfig": tls}
    elif page.workload == METRICS:
        endpoint["honorLabels"] = True  # the operator's labels `namespace` and `pod` would displace those of its page
    else:
        endpoint["relabelings"] = [_NODE]
    component = page.workload.component
    spec = {"jobLabel": COMPONENT, "selector": {"matchLabels": selector(component)}, "endpoints": [endpoint]}
    return _labelled(config, namespaced_object(API, "ServiceMonitor", page.service, component, spec=spec))


def alert_groups() -> list[Object]:
    """Every alert, in groups named `confcom-COMPONENT`."""
    (rules,) = read_yaml(files("confcom.manifests").joinpath("rules.yaml").read_text(), source="rules.yaml")
    found: list[Object] = rules["groups"]
    return found


def _rules(config: AddonConfig, pages: list[Page]) -> Object:
    """The alerts on the components that run."""
    names = {f"confcom-{page.workload.component}" for page in pages}
    if any(page.port is None for page in pages):
        names.add("confcom-services")
    groups = [group for group in alert_groups() if group["name"] in names]
    found = namespaced_object(API, "PrometheusRule", "confcom", objects.ITSELF.component, spec={"groups": groups})
    return _labelled(config, found)


def _labelled(config: AddonConfig, found: Object) -> Object:
    found["metadata"]["labels"] |= config.monitor_labels()
    return found
