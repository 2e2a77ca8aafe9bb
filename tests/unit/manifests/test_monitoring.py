"""How Prometheus finds the add-on: which pages, by which labels, and which alerts."""

from __future__ import annotations

from typing import Any

import pytest

from confcom.errors import ConfigError
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig

EVERYTHING = AddonConfig(
    quote_helper=True, metrics=True, autoscaling=True, collateral=True, attestation=True,
    attested_certificates=True, monitoring_labels=("release=prometheus",),
)  # fmt: skip


def of_kind(kind: str, config: AddonConfig, *, operator: bool = True) -> dict[str, dict[str, Any]]:
    objects = render(config, version="1", prometheus_operator=operator)
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def test_every_page_has_a_monitor_that_selects_its_pods_and_port() -> None:
    monitors, services = of_kind("ServiceMonitor", EVERYTHING), of_kind("Service", EVERYTHING)
    pods = of_kind("DaemonSet", EVERYTHING) | of_kind("Deployment", EVERYTHING)
    assert set(monitors) == {
        "sgx-device-plugin-metrics", "sgx-quote-helper-metrics", "sgx-metrics", "sgx-webhook-metrics",
        "confcom-metrics-api-metrics", "confcom-collateral", "confcom-attestation",
        "confcom-certificate-signer-metrics",
    }  # fmt: skip
    for name, monitor in monitors.items():
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        (endpoint,) = monitor["spec"]["endpoints"]
        (port,) = [one for one in services[name]["spec"]["ports"] if one["name"] == endpoint["port"]]
        chosen = services[name]["spec"]["selector"].items()
        (template,) = [
            one["spec"]["template"] for one in pods.values()
            if chosen <= one["spec"]["template"]["metadata"]["labels"].items()
        ]  # fmt: skip
        declared = [one for container in template["spec"]["containers"] for one in container["ports"]]
        assert port["targetPort"] in {one["name"] for one in declared}
        # Readiness is what an alert is about: pods that are not ready are scraped too.
        assert endpoint["port"] == "https" or services[name]["spec"]["publishNotReadyAddresses"]


def test_the_labels_of_the_exporter_are_kept_and_the_others_get_their_node() -> None:
    endpoints = {name: one["spec"]["endpoints"][0] for name, one in of_kind("ServiceMonitor", EVERYTHING).items()}
    assert [name for name, one in endpoints.items() if one.get("honorLabels")] == ["sgx-metrics"]
    (relabeling,) = endpoints["sgx-quote-helper-metrics"]["relabelings"]
    assert relabeling == {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}


def test_alerts_are_those_of_the_components_that_run() -> None:
    def groups(config: AddonConfig) -> list[str]:
        return [group["name"] for group in of_kind("PrometheusRule", config)["confcom"]["spec"]["groups"]]

    assert groups(AddonConfig(webhook=False)) == ["confcom-device-plugin"]
    assert set(groups(AddonConfig(collateral=True))) == {
        "confcom-device-plugin", "confcom-webhook", "confcom-collateral", "confcom-services"
    }  # fmt: skip
    assert len(groups(EVERYTHING)) == 9


@pytest.mark.parametrize(
    ("mode", "operator", "monitors", "annotated"),
    [
        ("auto", True, True, False), ("auto", False, False, True), ("annotations", True, False, True),
        ("off", True, False, False),
    ],
)  # fmt: skip
def test_a_page_is_never_found_in_two_ways(mode: str, operator: bool, monitors: bool, annotated: bool) -> None:
    config = AddonConfig().changed({"monitoring": mode})
    assert bool(of_kind("ServiceMonitor", config, operator=operator)) is monitors
    annotations = [
        one["metadata"].get("annotations", {}) for one in of_kind("Service", config, operator=operator).values()
    ]
    assert bool([one for one in annotations if one.get("prometheus.io/scrape") == "true"]) is annotated


def test_a_wrong_label_is_named() -> None:
    with pytest.raises(ConfigError, match="'release' is no label"):
        AddonConfig().changed({"monitoring_labels": ["release"]})
