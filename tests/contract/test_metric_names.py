"""Metrics by name: what rules, dashboards, adapters and documents use is what the daemons export, and the reverse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from documented import ROOT
from exported_metrics import SET_BY_SCRAPING, UNKNOWN, Exported, every_page, exported

NAME = re.compile(r"\bconfcom_[a-z0-9_]+\b(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=|,|$)")
GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([a-z_, ]*)\)")
FILES = sorted(
    path
    for folder in ("prometheus", "grafana", "autoscaling")
    for path in (ROOT / "deploy" / folder).rglob("*")
    if path.suffix in (".yaml", ".json")
)
COMPONENTS = (
    "confcom_build_", "confcom_quote_helper_", "confcom_device_plugin_", "confcom_webhook_", "confcom_epc_",
    "confcom_collateral_service_", "confcom_attestation_", "confcom_metrics_api_",
    "confcom_certificate_signer_",
)  # fmt: skip
"""What the names of all metrics begin with, by component."""
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.fixture(scope="module")
def names() -> Exported:
    found: Exported = {}
    # A short name, for sockets in it.
    with TemporaryDirectory(prefix="m-") as folder, every_page(Path(folder)) as pages:
        for page in pages:
            shown = exported(page.scrape())
            assert shown["confcom_build_info"] == {"component", "version"}, page.component
            for name, labels in shown.items():
                found.setdefault(name, set()).update(labels)
    return found


def texts(value: Any) -> Iterator[str]:
    """Every text in a file of YAML or JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for key, one in value.items() for text in (key, *texts(one)) if isinstance(text, str))
    elif isinstance(value, list):
        yield from (text for one in value for text in texts(one))


def unknown(text: str, names: Exported) -> set[str]:
    """What a text names that no daemon exports: metrics, and labels in braces behind one or of a grouping."""
    found = set()
    every = SET_BY_SCRAPING | {"le"} | {label for labels in names.values() for label in labels}
    for match in NAME.finditer(text):
        name = match[0].partition("{")[0]
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        labels = names.get(name, names.get(f"{name}_count"))
        if labels is None:
            found.add(name)
        elif match[1] is not None and labels != {UNKNOWN}:
            inside = re.sub(r'"[^"]*"', "", match[1]).strip()
            for label in (one.strip() for one in LABEL.findall(inside)):
                if label not in labels | SET_BY_SCRAPING | ({"le"} if base != name else set()):
                    found.add(f"{name}{{{label}}}")
    for match in GROUPING.finditer(text):
        found |= set(re.findall(r"[a-z_]+", match[1])) - every
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_for_others_names_what_is_exported(path: Path, names: Exported) -> None:
    parts = yaml.safe_load_all(path.read_text())
    found = {one for part in parts for text in texts(part) for one in unknown(text, names)}
    assert not found


def test_documents_name_what_is_exported(names: Exported) -> None:
    found = {(page.name, one) for page in PAGES for one in unknown(page.read_text(), names)}
    # Pages have Python names too.
    assert not {(page, one) for page, one in found if one.startswith(COMPONENTS) or not one.startswith("confcom_")}


def test_every_metric_is_documented(names: Exported) -> None:
    written = "".join(page.read_text() for page in PAGES)
    own = {name for name in names if not re.search(r"_(created|bucket|count|sum)$", name) or name.endswith("_bucket")}
    assert not {name for name in own if not re.search(rf"\b{re.sub('_bucket$', '', name)}\b", written)}


def test_names_follow_the_conventions_of_prometheus(names: Exported) -> None:
    """Counters end in _total, nothing else does; units are base units, but for names that were documented before."""
    assert {name for name in names if not name.startswith(COMPONENTS)} == set()
    before = {
        "confcom_device_plugin_epc_mib", "confcom_device_plugin_epc_requestable_mib",
        "confcom_device_plugin_epc_reserve_mib", "confcom_webhook_largest_node_epc_mib", "confcom_epc_limit_hits",
    }  # fmt: skip
    odd = {name for name in names if re.search(r"_(mib|kib|gib|ms|minutes|hours|days|percent|hits)(_|$)", name)}
    assert odd == before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rate(confcom_a_total[5m])", set()),
        ("confcom_a_total{code=\"x\", node=~'y'}", set()),
        ("confcom_gone == 1", {"confcom_gone"}),
        ('confcom_a_total{kode="x"}', {"confcom_a_total{kode}"}),
        ("sum by (node, code) (confcom_a_total)", set()),
        ("sum by (color) (confcom_a_total)", {"color"}),
        ("histogram_quantile(0.9, sum by (le) (rate(confcom_s_bucket[5m])))", set()),
        ('confcom_s_bucket{le="1"}', set()),
        ("`confcom_s`", set()),
    ],
)
def test_a_wrong_name_is_noticed(text: str, found: set[str]) -> None:
    names = {"confcom_a_total": {"code"}, "confcom_s_bucket": {"le"}, "confcom_s_count": set(), "confcom_s_sum": set()}
    assert unknown(text, names) == found
