"""How Prometheus finds what the add-on exports: Services, and monitors and alerts where its operator runs.

Without the operator the Services have the annotations that common configurations of Prometheus look for, and the alerts
are in `deploy/prometheus/rules.yaml`.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

from confcom.formats.yaml_text import read_yaml
from confcom.manifests import (
    attestation,
    certificate_signer,
    device_plugin,
    metrics,
    metrics_api,
    objects,
    quote_helper,
    webhook,
)
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import COLLATERAL, COMPONENT, NAMESPACE, Object, Workload, namespaced_object, selector
from confcom.manifests.tls_service import CA_KEY

API = "monitoring.coreos.com/v1"
INTERVAL = "30s"
_NODE = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}


class Page(NamedTuple):
    """A page for Prometheus at `port` of a component's pods; `named`: the page names namespaces and pods itself."""

    workload: Workload
    port: int
    named: bool = False

    @property
    def service(self) -> str:
        """The name of its Service."""
        name = self.workload.name
        return name if name.endswith("metrics") else f"{name}-metrics"


def monitoring(config: AddonConfig, *, operator: bool) -> list[Object]:
    """Every object for Prometheus; `operator`: whether the cluster has the kinds of the Prometheus operator."""
    mode = config.monitoring
    if mode == "auto":
        mode = "operator" if operator else "annotations"
    if mode == "off":
        return []
    pages = _pages(config)
    found = [_service(page, annotated=mode == "annotations") for page in pages]
    if mode == "annotations":
        return found
    found += [_monitor(config, page.workload, page.service, _plain_endpoint(page)) for page in pages]
    over_tls = _over_tls(config)
    found += [_monitor(config, workload, workload.name, _tls_endpoint(workload)) for workload in over_tls]
    return [*found, _rules(config, [*(page.workload for page in pages), *over_tls])]


def _pages(config: AddonConfig) -> list[Page]:
    found = [Page(objects.DEVICE_PLUGIN, device_plugin.HTTP_PORT)]
    found += [Page(objects.QUOTE_HELPER, quote_helper.HTTP_PORT)] if config.quote_helper else []
    found += [Page(objects.METRICS, metrics.HTTP_PORT, named=True)] if config.metrics else []
    found += [Page(objects.WEBHOOK, webhook.HTTP_PORT)] if config.webhook else []
    if config.attested_certificates:
        found.append(Page(certificate_signer.workload_of(config), certificate_signer.HTTP_PORT))
    return found + ([Page(objects.METRICS_API, metrics_api.HTTP_PORT)] if config.autoscaling else [])


def _over_tls(config: AddonConfig) -> list[Workload]:
    """Services that have their page beside what they serve."""
    found = [COLLATERAL] if config.collateral else []
    return found + ([attestation.workload_of(config)] if config.attestation else [])


def _service(page: Page, *, annotated: bool) -> Object:
    """A headless Service: only its endpoints are used. Pods that are not ready are scraped too."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": selector(page.workload.component),
        "ports": [{"name": "http", "port": page.port, "targetPort": "http", "protocol": "TCP"}],
    }
    found = namespaced_object("v1", "Service", page.service, page.workload.component, spec=spec)
    if annotated:
        found["metadata"]["annotations"] = {"prometheus.io/scrape": "true", "prometheus.io/port": str(page.port)}
    return found


def _plain_endpoint(page: Page) -> Object:
    # The operator's labels `namespace` and `pod` would displace those of the page.
    return {"port": "http", "interval": INTERVAL, **({"honorLabels": True} if page.named else {"relabelings": [_NODE]})}


def _tls_endpoint(workload: Workload) -> Object:
    ca = {"configMap": {"name": f"{workload.name}-ca", "key": CA_KEY}}
    name = f"{workload.name}.{NAMESPACE}.svc"
    return {"port": "https", "scheme": "https", "interval": INTERVAL, "tlsConfig": {"ca": ca, "serverName": name}}


def _monitor(config: AddonConfig, workload: Workload, name: str, endpoint: Object) -> Object:
    spec = {
        "jobLabel": COMPONENT,
        "selector": {"matchLabels": selector(workload.component)},
        "endpoints": [endpoint],
    }
    return _labelled(config, namespaced_object(API, "ServiceMonitor", name, workload.component, spec=spec))


def alert_groups() -> list[Object]:
    """Every alert, in groups named `confcom-COMPONENT`."""
    (rules,) = read_yaml(files("confcom.manifests").joinpath("rules.yaml").read_text(), source="rules.yaml")
    found: list[Object] = rules["groups"]
    return found


def _rules(config: AddonConfig, workloads: list[Workload]) -> Object:
    """The alerts on the components that run."""
    names = {f"confcom-{workload.component}" for workload in workloads}
    if {COLLATERAL.component, "attestation"} & {workload.component for workload in workloads}:
        names.add("confcom-services")
    groups = [group for group in alert_groups() if group["name"] in names]
    found = namespaced_object(API, "PrometheusRule", "confcom", objects.ITSELF.component, spec={"groups": groups})
    return _labelled(config, found)


def _labelled(config: AddonConfig, found: Object) -> Object:
    found["metadata"]["labels"] |= config.monitor_labels()
    return found
