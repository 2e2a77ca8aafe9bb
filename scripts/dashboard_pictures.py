"""Pictures of the dashboards: `record` runs every daemon under load beside Prometheus, `draw` makes SVG of the record.

Grafana itself is in none of the registries that this project builds from, so the pictures are drawn from the panels of
`scripts/dashboards.py` and the answers of a real Prometheus to their queries.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from dashboards import DASHBOARDS, Dashboard, Panel
from observe import prometheus

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "dashboards"
RECORD = PICTURES / "recorded.json"
SECONDS, STEP, WINDOW = 180, 5, "20s"
"""Of the recording, between two values, and of rates."""
COLORS = ("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300")
Series = dict[str, list[float | None]]


def record() -> None:
    """Write what Prometheus answers to every query."""
    sys.path.insert(0, str(ROOT / "tests"))
    from exported_metrics import every_page  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory(prefix="m-") as name, every_page(Path(name)) as pages:
        for page in pages:
            page.scrape()
        folder = Path(name) / "prometheus"
        folder.mkdir()
        with running_prometheus(folder, pages) as url:
            begun = time.time()
            for turn in range(SECONDS):
                for page in pages:
                    page.use(turn)
                time.sleep(max(0.0, begun + turn + 1 - time.time()))
            ended = time.time()
            found = {
                query: _ask(url, query, begun + 30, ended)
                for dashboard in DASHBOARDS for panel in dashboard.panels for query, _ in panel.queries
            }  # fmt: skip
    PICTURES.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(found, separators=(",", ":")) + "\n")


@contextmanager
def running_prometheus(folder: Path, pages: Sequence[Any], rules: Sequence[Path] = ()) -> Iterator[str]:
    """The URL of a Prometheus that scrapes these pages, with the labels that the add-on's monitors give."""
    jobs = [
        {
            "job_name": page.component, "scheme": "https" if page.https else "http",
            "tls_config": {"insecure_skip_verify": True}, "honor_labels": page.component == "metrics",
            "static_configs": [{"targets": [page.address], "labels": {} if page.https else {"node": "n1"}}],
        }
        for page in pages
    ]  # fmt: skip
    times = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"}
    config = {"global": times, "scrape_configs": jobs, "rule_files": [str(path) for path in rules]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    url = f"http://{address}"
    command = [str(prometheus("prometheus")), f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not _ready(url):
                if time.monotonic() > deadline:
                    sys.exit("dashboard_pictures: Prometheus does not get ready")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _ask(url: str, query: str, begin: float, end: float) -> list[dict[str, Any]]:
    """Series with their labels and one value for each step; None where there is none."""
    text = query.replace("$__rate_interval", WINDOW).replace("$node", ".*")
    words = urllib.parse.urlencode({"query": text, "start": begin, "end": end, "step": STEP})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{words}", timeout=60) as answer:
        found = json.load(answer)["data"]["result"]
    steps = int((end - begin) / STEP) + 1
    series = []
    for one in found:
        values: list[float | None] = [None] * steps
        for at, value in one["values"]:
            number = float(value)
            values[round((at - begin) / STEP)] = None if number != number else float(f"{number:.4g}")
        labels = {name: value for name, value in one["metric"].items() if name != "__name__"}
        series.append({"labels": labels, "values": values})
    return series


def pictures() -> dict[Path, bytes]:
    """Path to content of a picture of each dashboard."""
    recorded = json.loads(RECORD.read_text())
    return {PICTURES / f"{one.name}.svg": picture(one, recorded).encode() for one in DASHBOARDS}


def picture(dashboard: Dashboard, recorded: dict[str, Any]) -> str:
    """A dashboard as SVG, light on dark as Grafana shows it."""
    stats = [panel for panel in dashboard.panels if panel.stat]
    graphs = [panel for panel in dashboard.panels if not panel.stat]
    width, height = 1200, 120 + 230 * ((len(graphs) + 1) // 2)
    parts = [f'<text x="16" y="26" font-size="17" fill="#fff">{escape(dashboard.title)}</text>']
    for number, panel in enumerate(stats):
        parts.append(_stat(panel, recorded, 10 + number * 1185 / len(stats), 40, 1185 / len(stats) - 10))
    for number, panel in enumerate(graphs):
        parts.append(_graph(panel, recorded, 10 + number % 2 * 595, 120 + number // 2 * 230))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11">\n<title>{escape(dashboard.title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#111217"/>\n{body}\n</svg>\n'
    )


def _stat(panel: Panel, recorded: dict[str, Any], x: float, y: float, width: float) -> str:
    found = recorded[panel.queries[0][0]]
    values = [value for value in (found[0]["values"] if found else []) if value is not None]
    shown = _shown(values[-1], panel.unit) if values else "no data"
    return (
        f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="70" fill="#181b1f" stroke="#2c3235"/>'
        f'<text x="{x + 8:.0f}" y="{y + 17}" fill="#ccccdc">{escape(panel.title)}</text>'
        f'<text x="{x + width / 2:.0f}" y="{y + 53}" font-size="26" text-anchor="middle" fill="#73bf69">{shown}</text>'
    )


def _graph(panel: Panel, recorded: dict[str, Any], x: float, y: float) -> str:
    """Title, an axis of three values, one line for each series, and up to ten names."""
    lines = [
        (re.sub(r"\{\{(\w+)\}\}", lambda word, one=one: one["labels"].get(word[1], ""), legend), one["values"])  # type: ignore[misc]
        for query, legend in panel.queries for one in recorded[query]
    ]  # fmt: skip
    lines = lines[: len(COLORS)]
    top = max((value for _, values in lines for value in values if value is not None), default=0.0) * 1.1 or 1.0
    left, under, wide, high = x + 62, y + 158, 510.0, 128.0
    parts = [
        f'<rect x="{x:.0f}" y="{y}" width="585" height="220" fill="#181b1f" stroke="#2c3235"/>',
        f'<text x="{x + 8:.0f}" y="{y + 17}" fill="#ccccdc">{escape(panel.title)}</text>',
    ]
    for share in (0, 0.5, 1):
        level = under - share * high
        parts.append(f'<path d="M{left:.0f} {level:.0f}h{wide:.0f}" stroke="#2c3235"/>')
        parts.append(
            f'<text x="{left - 6:.0f}" y="{level + 4:.0f}" text-anchor="end" fill="#8e8e8e">'
            f"{_shown(top * share, panel.unit)}</text>"
        )
    for number, (name, values) in enumerate(lines):
        color = COLORS[number]
        parts.append(f'<path d="{_path(values, left, under, wide, high / top)}" fill="none" stroke="{color}"/>')
        place = f'x="{x + 12 + number % 3 * 192:.0f}" y="{y + 178 + number // 3 * 13}"'
        parts.append(f'<text {place} fill="{color}" font-size="10">{escape(name[:34] or "value")}</text>')
    if not lines:
        parts.append(f'<text x="{x + 292:.0f}" y="{y + 100}" text-anchor="middle" fill="#8e8e8e">no data</text>')
    return "".join(parts)


def _path(values: Sequence[float | None], left: float, under: float, wide: float, scale: float) -> str:
    words, pen = [], "M"
    for number, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        words.append(f"{pen}{left + wide * number / max(1, len(values) - 1):.1f} {under - value * scale:.1f}")
        pen = "L"
    return "".join(words)


def _shown(value: float, unit: str) -> str:
    """A number with its unit, as short as Grafana's."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for size, word in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {word}"
        return "0 s"
    if unit == "bytes":
        for size, word in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= size:
                return f"{value / size:.3g} {word}"
        return f"{value:.3g} B"
    return f"{value:.3g}" + (" /s" if unit == "ops" else "")


def main(arguments: list[str]) -> int:
    if arguments == ["record"]:
        record()
    elif arguments != ["draw"]:
        print("usage: dashboard_pictures.py record|draw", file=sys.stderr)
        return 2
    for path, content in pictures().items():
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
