"""Files for HPA, KEDA and prometheus-adapter: their form, their queries, and the names that they use."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from observe import prometheus

from confcom.protocols.custom_metrics import RESOURCES
from confcom.services.metrics_api.figures import METRICS
from documented import ROOT

FOLDER = ROOT / "deploy" / "autoscaling"
HPAS = sorted(FOLDER.glob("hpa-*.yaml"))
ADAPTER = FOLDER / "prometheus-adapter-values.yaml"
KEDA = FOLDER / "keda-scaledobject.yaml"
QUANTITY = re.compile(r"\d+(?:\.\d+)?(?:m|k|M|G|T|Ki|Mi|Gi|Ti)?")
TRIGGER = {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues", "namespace",
           "customHeaders", "queryParameters", "unsafeSsl", "timeout", "authModes"}  # fmt: skip
"""Metadata that KEDA's prometheus scaler reads."""
RULE = {"seriesQuery", "seriesFilters", "resources", "name", "metricsQuery"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", HPAS, ids=lambda path: path.stem)
def test_an_autoscaler_asks_for_what_the_metrics_api_has(path: Path) -> None:
    found = read(path)
    assert (found["apiVersion"], found["kind"]) == ("autoscaling/v2", "HorizontalPodAutoscaler")
    assert found["spec"]["minReplicas"] >= 1, "0 cannot be left on EPC"
    for metric in found["spec"]["metrics"]:
        (source,) = [value for key, value in metric.items() if key != "type"]
        assert source["metric"]["name"] in METRICS
        # The other type of target makes an Object grow on every turn, and Pods take no other.
        assert source["target"]["type"] == "AverageValue"
        assert QUANTITY.fullmatch(source["target"]["averageValue"])
        if metric["type"] == "Object":
            described = source["describedObject"]
            assert (described["apiVersion"], described["kind"]) in RESOURCES.values()
            assert described["name"] == found["spec"]["scaleTargetRef"]["name"]
        else:
            assert (metric["type"], set(source)) == ("Pods", {"metric", "target"})


def triggers() -> list[Any]:
    found = read(KEDA)
    assert (found["apiVersion"], found["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    triggers: list[Any] = found["spec"]["triggers"]
    return triggers


def test_keda_takes_a_ratio_as_it_is_and_no_lost_target_for_no_load() -> None:
    for trigger in triggers():
        metadata = trigger["metadata"]
        assert trigger["type"] == "prometheus"
        assert set(metadata) <= TRIGGER
        assert {"serverAddress", "query", "threshold"} <= set(metadata)
        assert all(isinstance(value, str) for value in metadata.values()), "KEDA reads texts alone"
        assert float(metadata["threshold"]) > 0
        assert metadata["ignoreNullValues"] == "false"
        assert trigger["metricType"] == ("Value" if "/" in metadata["query"] else "AverageValue")


def test_rules_of_the_adapter_give_the_names_of_the_metrics_api() -> None:
    rules = read(ADAPTER)["rules"]["custom"]
    names = [rule["name"]["as"] for rule in rules]
    # Prometheus cannot join the helper's uids of pods.
    assert set(names) == set(METRICS) - {"sgx_quotes_per_second"}
    assert len(names) == len(set(names))
    for rule in rules:
        assert set(rule) <= RULE
        assert rule["resources"]["overrides"] == {
            "namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}
        }  # fmt: skip
        assert "<<.LabelMatchers>>" in rule["metricsQuery"]
        assert "<<.GroupBy>>" in rule["metricsQuery"]
        assert re.match(r"confcom_[a-z_]+\{", rule["seriesQuery"])


def queries() -> dict[str, str]:
    found = {f"keda{number}": trigger["metadata"]["query"] for number, trigger in enumerate(triggers())}
    for rule in read(ADAPTER)["rules"]["custom"]:
        name = rule["name"]["as"]
        found[f"{name}_series"] = rule["seriesQuery"]
        query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="a",pod=~"b|c"')
        found[name] = query.replace("<<.GroupBy>>", "pod")
    return found


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    program = prometheus("promtool")
    if program is None and os.environ.get("CONFCOM_TEST_OBSERVE") == "1":
        pytest.fail("there is no promtool")
    if program is None:
        pytest.skip("there is no promtool here: ./dev observe downloads one")
    rules = [{"record": f"a:{name}", "expr": query} for name, query in queries().items()]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": rules}]}))
    done = subprocess.run([str(program), "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
