"""Reading the pages of exporters: what is logged of nodes that come and go."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from confcom.pki.serving_pair import Authority
from confcom.protocols.custom_metrics import MetricRequest, ScaledPod
from confcom.services.metrics_api.figures import Figures, Refused
from confcom.services.metrics_api.metrics_api import Exporters, MetricsApiConfig, MetricsApiMetrics


def exporter_on(node: str, component: str = "metrics") -> ScaledPod:
    labels = {"app.kubernetes.io/component": component, "app.kubernetes.io/part-of": "confcom"}
    return ScaledPod(
        uid=node, namespace="confcom-system", name=f"metrics-{node}", node=node, address="127.0.0.1", labels=labels,
        owners=frozenset(), requests=False, claims=False, runs=True, finished=False,
    )  # fmt: skip


async def test_a_failure_is_logged_once_for_as_long_as_its_node_is_there(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    made = Authority.make("test", now=datetime(2026, 1, 1, tzinfo=UTC), lifetime=timedelta(days=1))
    ca.write_bytes(made.certificate)
    nodes: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        exporters = Exporters(
            MetricsApiConfig(exporters_ca=str(ca)),
            lambda: map(exporter_on, nodes),
            Figures(lambda: (), stale_after=30.0),
            MetricsApiMetrics(CollectorRegistry()),
            port=taken.getsockname()[1],
        )
        logged = []
        for present in ("ab", "ab", "a", "ab"):
            nodes[:] = present
            with capture_logs() as events:
                await exporters.ask()
            logged.append([event["what"] for event in events])
    assert logged == [["metrics of node a", "metrics of node b"], [], [], ["metrics of node b"]]


async def test_claims_count_on_a_node_with_epc_whose_exporter_is_being_replaced(tmp_path: Path) -> None:
    """A sum without them would have HPA end others."""
    claiming = replace(exporter_on("a"), uid="u", namespace="shop", name="web", labels={}, claims=True)
    pods = [claiming]
    figures = Figures(lambda: pods, stale_after=30.0)
    config, metrics = MetricsApiConfig(exporters_ca=str(tmp_path / "none")), MetricsApiMetrics(CollectorRegistry())
    exporters = Exporters(config, lambda: pods, figures, metrics)
    request = MetricRequest("shop", "namespaces", "shop", "sgx_epc_used_bytes")
    for component, reason in (("webhook", "request or use no EPC"), ("device-plugin", "no exporter of EPC use runs")):
        pods[1:] = [exporter_on("a", component)]
        await exporters.ask()
        with pytest.raises(Refused, match=reason):
            figures.answer(request, monotonic=0.0, now=datetime(2026, 1, 1, tzinfo=UTC))
