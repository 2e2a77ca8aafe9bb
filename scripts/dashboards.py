"""Grafana's dashboards, made of one line per panel; `./dev generate` writes them into deploy/grafana."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

GRAFANA = Path(__file__).resolve().parent.parent / "deploy" / "grafana"
SCHEMA = 39
"""Of classic dashboards, which every Grafana since version 10 imports."""
WIDTH = 24
"""Columns of Grafana's grid."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    """A panel; `queries` are PromQL with the legend of its series, `unit` is Grafana's."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str = ""
    stat: bool = False


class Dashboard(NamedTuple):
    """A dashboard; `node` is the metric with the nodes to choose from, if there is a choice."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    node: str = ""


def stat(title: str, unit: str, query: str, about: str = "") -> Panel:
    """One number."""
    return Panel(title, unit, ((query, ""),), about, stat=True)


def graph(title: str, unit: str, *queries: tuple[str, str], about: str = "") -> Panel:
    """Series over time."""
    return Panel(title, unit, queries, about)


RATE = "$__rate_interval"
APART = '{peer!="others"}'  # those are counts of former peers, all at once: no rate
NODE = 'node=~"$node"'
QH, CS, EPC, WH = "confcom_quote_helper", "confcom_collateral_service", "confcom_epc", "confcom_webhook"
DP, ATT = "confcom_device_plugin", "confcom_attestation"


def quantile(share: str, metric: str, by: str = "") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({share}, sum by (le{by}) (rate({metric}_bucket[{RATE}])))"


def rates(metric: str, *labels: str) -> tuple[str, str]:
    """How fast a counter grows, by labels."""
    return f"sum by ({', '.join(labels)}) (rate({metric}[{RATE}]))", " ".join(f"{{{{{label}}}}}" for label in labels)


DASHBOARDS = (
    Dashboard("confcom-epc", "confcom: SGX nodes and EPC", (
        stat("EPC", "bytes", f"sum({EPC}_node_size_bytes{{{NODE}}})"),
        stat("Requested", "percentunit",
             f"sum({EPC}_node_requested_bytes{{{NODE}}}) / sum({EPC}_node_allocatable_bytes{{{NODE}}})",
             "Of what pods may request."),
        stat("Containers over their request", "none",
             f"sum(max by (node, namespace, pod, container) ({EPC}_over_limit{{{NODE}}}))"),
        stat("Resources whose devices are gone", "none",
             f"count(min by (node, resource) ({DP}_healthy) == 0) or vector(0)"),
        graph("EPC by node", "bytes",
              (f"sum by (node) ({EPC}_node_size_bytes{{{NODE}}})", "{{node}} there is"),
              (f"{EPC}_node_allocatable_bytes{{{NODE}}}", "{{node}} may be requested"),
              (f"{EPC}_node_requested_bytes{{{NODE}}}", "{{node}} requested"),
              (f"{EPC}_node_mapped_bytes{{{NODE}}}", "{{node}} mapped"),
              about="Mapped is the most that enclaves can use. Beyond what there is the kernel pages."),
        graph("Enclave memory mapped by pod", "bytes",
              (f'topk(10, sum by (namespace, pod) ({EPC}_mapped_bytes{{{NODE},pod!=""}}))', "{{namespace}}/{{pod}}")),
        graph("Mapped over requested by pod", "percentunit",
              ((f'topk(10, sum by (namespace, pod) ({EPC}_mapped_bytes{{{NODE},pod!=""}}) '
               f'/ (sum by (namespace, pod) ({EPC}_requested_bytes{{{NODE},pod!=""}}) > 0))'), "{{namespace}}/{{pod}}"),
              about="Above 100 % a pod takes EPC that others requested."),
        graph("Paging", "percentunit", (f"rate({EPC}_reclaim_seconds_total{{{NODE}}}[{RATE}])", "{{node}}"),
              about="Share of a processor that the kernel spends on paging EPC. Above 5 % enclaves are slow."),
        graph("EPC in use", "bytes",
              (f'topk(10, sum by (namespace, pod) ({EPC}_in_use_bytes{{{NODE},pod!=""}}))', "{{namespace}}/{{pod}}"),
              about="Only where the kernel counts EPC in cgroups."),
        graph("Processes with enclaves", "none", (f"sum by (node) ({EPC}_processes{{{NODE}}})", "{{node}}")),
        graph("Containers that got devices", "ops", rates(f"{DP}_grants_total", "resource")),
        graph("A pass of the exporter", "s", (f"{EPC}_pass_seconds{{{NODE}}}", "{{node}}")),
    ), f"{EPC}_node_size_bytes"),
    Dashboard("confcom-quotes", "confcom: quotes", (
        stat("Nodes with a ready helper", "none", f"sum(max by (node) ({QH}_ready)) or sum({QH}_ready)"),
        stat("Quotes", "ops", f"sum(rate({QH}_quotes_total{APART}[{RATE}]))"),
        stat("Failed requests", "percentunit",
             f'sum(rate({QH}_requests_total{{kind=~"GetQuote|GetQuoteEx",outcome!="answered"}}[{RATE}])) '
             f'/ sum(rate({QH}_requests_total{{kind=~"GetQuote|GetQuoteEx"}}[{RATE}]))'),
        stat("99 % within", "s", quantile("0.99", f"{QH}_request_seconds")),
        graph("Requests", "ops", rates(f"{QH}_requests_total", "kind", "outcome")),
        graph("Time of a request", "s", (quantile("0.5", f"{QH}_request_seconds"), "half"),
              (quantile("0.99", f"{QH}_request_seconds"), "99 %"),
              (quantile("0.99", f"{QH}_platform_seconds"), "99 % of QE and PCE")),
        graph("Pods with most quotes", "ops",
              (f"topk(10, sum by (peer) (rate({QH}_quotes_total{APART}[{RATE}])))", "{{peer}}"),
              about="By the UID of the pod; `confcom top` has the names."),
        graph("Waiting", "none", (f"sum by (instance) ({QH}_waiting)", "{{instance}} waiting"),
              (f"sum by (instance) ({QH}_in_hand)", "{{instance}} in hand")),
        graph("Turned away", "ops", rates(f"{QH}_over_limit_total", "limit"),
              (f"sum(rate({QH}_throttled_connections_total{APART}[{RATE}]))", "unread")),
        graph("Helpers by state", "none", (f"sum by (state) ({QH}_state)", "{{state}}")),
        graph("Quotes of debug enclaves and of unexpected signers", "ops",
              (f"sum(rate({QH}_debug_quotes_total[{RATE}]))", "debug"),
              (f"sum(rate({QH}_unexpected_signer_quotes_total[{RATE}]))", "unexpected signer")),
        graph("Lines of the log that were lost", "ops", rates(f"{QH}_log_lines_lost_total", "instance")),
    )),
    Dashboard("confcom-collateral", "confcom: collateral and TCB", (
        stat("First document to expire", "s", f'min({CS}_seconds_to_expiry{{update=~"|standard|early"}})'),
        stat("Since the last refresh", "s", f"time() - max({CS}_last_refresh_timestamp_seconds)"),
        stat("Nodes that are not UpToDate", "none",
             f'count(max by (node, status) ({QH}_tcb_status{{status!="UpToDate"}}) == 1) or vector(0)'),
        stat("Failures of the store", "none", f"sum(increase({CS}_store_failures_total[{RATE}]))"),
        graph("Helpers by TCB status", "none", (f"sum by (status) ({QH}_tcb_status) > 0", "{{status}}"),
              about="As our verifier sees the quotes of the node."),
        graph("Until documents expire", "s",
              (f'min by (kind, fmspc, ca) ({CS}_seconds_to_expiry{{update=~"|standard|early"}})',
               "{{kind}} {{fmspc}}{{ca}}")),
        graph("Until the helpers' collateral expires", "s",
              (f"min by (instance) ({QH}_collateral_expires_seconds)", "{{instance}}")),
        graph("Requests", "ops", rates(f"{CS}_requests_total", "path", "status")),
        graph("Where answers came from", "ops", rates(f"{CS}_cache_total", "result")),
        graph("Questions to upstream that failed", "ops",
              (f"sum by (code) (rate({CS}_upstream_errors_total[{RATE}])) > 0", "{{code}}")),
        graph("Refreshed", "ops", rates(f"{CS}_refresh_total", "outcome")),
        graph("Number of the TCB levels", "none", (f"{QH}_tcb_evaluation_number", "{{instance}}")),
    )),
    Dashboard("confcom-webhook", "confcom: webhook", (
        stat("Ready replicas", "none", f"sum({WH}_ready)"),
        stat("Reviews", "ops", f"sum(rate({WH}_reviews_total[{RATE}]))"),
        stat("99 % within", "s", quantile("0.99", f"{WH}_review_seconds")),
        stat("First certificate to expire", "s", f"min({WH}_certificate_expiry_timestamp_seconds) - time()"),
        graph("Reviews", "ops", rates(f"{WH}_reviews_total", "task", "outcome")),
        graph("Refusals", "ops", (f"sum by (code) (rate({WH}_refusals_total[{RATE}])) > 0", "{{code}}")),
        graph("Warnings", "ops", (f"sum by (code) (rate({WH}_warnings_total[{RATE}])) > 0", "{{code}}")),
        graph("Time of a review", "s", (quantile("0.5", f"{WH}_review_seconds"), "half"),
              (quantile("0.99", f"{WH}_review_seconds"), "99 %")),
        graph("Requests that were no review", "ops", rates(f"{WH}_rejected_requests_total", "status")),
        graph("Failures of the Kubernetes API", "ops", rates(f"{WH}_cluster_failures_total", "what")),
    )),
    Dashboard("confcom-attestation", "confcom: attestation service", (
        stat("Ready", "none", f"sum({ATT}_ready)"),
        stat("Attest calls", "ops", f"sum(rate({ATT}_requests_total[{RATE}]))"),
        stat("Accepted", "percentunit",
             f'sum(rate({ATT}_requests_total{{outcome="accepted"}}[{RATE}])) '
             f"/ sum(rate({ATT}_requests_total[{RATE}]))"),
        stat("First signing key to expire", "s", f"min({ATT}_signing_key_expiry_timestamp_seconds) - time()"),
        graph("Calls by outcome", "ops", rates(f"{ATT}_requests_total", "outcome")),
        graph("Calls by type", "ops", rates(f"{ATT}_requests_total", "type")),
        graph("Time of a call", "s",
              (quantile("0.5", f"{ATT}_seconds"), "half"), (quantile("0.99", f"{ATT}_seconds"), "99 %")),
        graph("Failures", "ops", (f"sum(rate({ATT}_store_failures_total[{RATE}]))", "store"),
              (f'sum(rate({ATT}_certificate_events_total{{event="failed"}}[{RATE}]))', "certificate")),
    )),
)  # fmt: skip


def dashboard_files() -> dict[Path, bytes]:
    """Path to content of every dashboard."""
    return {GRAFANA / f"{one.name}.json": (json.dumps(model(one), indent=1) + "\n").encode() for one in DASHBOARDS}


def model(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana's JSON: numbers in the first row, then graphs, two a row."""
    stats = [panel for panel in dashboard.panels if panel.stat]
    panels = []
    for number, panel in enumerate(dashboard.panels):
        width, height = (WIDTH // len(stats), 4) if panel.stat else (WIDTH // 2, 8)
        place = number if panel.stat else number - len(stats)
        across = WIDTH // width
        top = 0 if panel.stat else 4
        grid = {"x": place % across * width, "y": top + place // across * height, "w": width, "h": height}
        panels.append(_panel(panel, number + 1, grid))
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    ]
    if dashboard.node:
        query = f"label_values({dashboard.node}, node)"
        variables.append({
            "name": "node", "label": "Node", "type": "query", "datasource": SOURCE, "query": query, "refresh": 2,
            "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
        })  # fmt: skip
    return {
        "uid": dashboard.name, "title": dashboard.title, "tags": ["confcom"], "schemaVersion": SCHEMA, "version": 1,
        "editable": True, "refresh": "30s", "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables}, "panels": panels,
    }  # fmt: skip


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend, "datasource": SOURCE}
        | ({"instant": True} if panel.stat else {})
        for index, (query, legend) in enumerate(panel.queries)
    ]
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if panel.stat:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    return {
        "id": number, "title": panel.title, "type": "stat" if panel.stat else "timeseries", "gridPos": grid,
        "datasource": SOURCE, "targets": targets, "options": options,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
    } | ({"description": panel.about} if panel.about else {})  # fmt: skip
