"""How Prometheus finds what the add-on exports: Services, and monitors and alerts where its operator runs.

Without the operator the Services have the annotations that common configurations of Prometheus look for, and the alerts
are in `deploy/prometheus/rules.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import NamedTuple

from confcom.formats.yaml_text import read_yaml
from confcom.manifests import objects
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import COMPONENT, METRICS, Object, Workload, namespaced_object, selector
from confcom.manifests.tls_service import CA_KEY

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
