"""Grafana's dashboards: Grafana's own types accept them, Prometheus their queries, and panels do not overlap."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboard_pictures import RECORD, pictures
from dashboards import GRAFANA, WIDTH
from observe import prometheus

from documented import ROOT

FILES = sorted(GRAFANA.glob("*.json"))
SCHEMA = ROOT / "tests" / "interop" / "grafana"
BUILT = ROOT / "build" / "grafana"
REQUIRED = os.environ.get("CONFCOM_TEST_OBSERVE") == "1"


def panels(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    return found


def test_each_dashboard_has_its_own_uid() -> None:
    models = [json.loads(path.read_text()) for path in FILES]
    assert [model["uid"] for model in models] == [path.stem for path in FILES]
    assert len(models) == 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_are_numbered_and_do_not_overlap(path: Path) -> None:
    found = panels(path)
    assert [panel["id"] for panel in found] == list(range(1, len(found) + 1))
    cells = [
        (column, row)
        for place in (panel["gridPos"] for panel in found)
        for column, row in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < WIDTH


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variable_of_a_query_is_there(path: Path) -> None:
    model = json.loads(path.read_text())
    names = {variable["name"] for variable in model["templating"]["list"]}
    text = json.dumps(model["panels"])
    for name in ("datasource", "node"):
        assert (f"${name}" in text or f"${{{name}}}" in text) is (name in names)
    for panel in model["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])


def test_the_pictures_are_of_the_dashboards_and_the_recorded_answers() -> None:
    queries = {target["expr"] for path in FILES for panel in panels(path) for target in panel["targets"]}
    assert queries == set(json.loads(RECORD.read_text()))
    for path, content in pictures().items():
        assert path.read_bytes() == content
        assert len(content) < 64 << 10
        ET.fromstring(content)


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    program = prometheus("promtool")
    if program is None and not REQUIRED:
        pytest.skip("there is no promtool here: ./dev observe downloads one")
    queries = [target["expr"] for path in FILES for panel in panels(path) for target in panel["targets"]]
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$__rate_interval", "5m").replace("$node", ".*")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run([str(program), "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("change", [{}, {"schemaVersion": "39"}, {"panels": [{"type": "stat", "gridPos": {"x": "a"}}]}])
def test_grafanas_own_types_accept_them(tmp_path: Path, change: dict[str, Any]) -> None:
    """`Dashboard` of the package @grafana/schema; a wrong type is noticed."""
    compiler = _types()
    for path in FILES:
        model = json.dumps(json.loads(path.read_text()) | change)
        (BUILT / f"{path.stem}.ts").write_text(
            f"import type {{ Dashboard }} from '@grafana/schema';\nexport const dashboard: Dashboard = {model};\n"
        )
    options = ["--noEmit", "--strict", "--skipLibCheck", "--ignoreConfig", "--moduleResolution", "bundler"]
    options += ["--target", "es2022", "--module", "esnext"]
    done = subprocess.run(
        [compiler, *options, *(f"{path.stem}.ts" for path in FILES)], cwd=BUILT, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode == 0) is (not change), done.stdout


def _types() -> Path:
    compiler = BUILT / "node_modules" / ".bin" / "tsc"
    if not compiler.exists():
        if not REQUIRED or shutil.which("npm") is None:
            pytest.skip("Grafana's types are not here: ./dev observe installs them with npm")
        BUILT.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SCHEMA / name, BUILT / name)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=BUILT, check=True, timeout=600)
    return compiler
