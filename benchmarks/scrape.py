"""What a scrape costs: the pages of the exporter and of the quote helper, by the pods of their node.

    python -m benchmarks.scrape

The figure is the processor time in which a page is made; the details have its size, and what a scraper on the same
machine waits for it over HTTP. While a page is made, the daemon's event loop does nothing else.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.measure import Growth, Row, cpu_seconds, number, show, spread
from benchmarks.scale import node_pod
from benchmarks.simulated import simulated_world
from benchmarks.verification import enclave_quote
from confcom.devices.processes import CgroupOwner, EnclaveProcess, count_use
from confcom.protocols.epc import EpcNode, parse_pod
from confcom.services.metrics.page import EpcMetrics, Kind, Seen, put_together
from confcom.services.quote_helper.connection import RequestEvent
from confcom.services.quote_helper.telemetry import EnclaveInventory, QuoteHelperMetrics
from confcom.services.runtime.status_page import StatusPage, component_registry, metrics_of

MIB = 1 << 20
PODS = (25, 250, 2500)
"""The kubelet's usual most is 110 a node; 250 are many, the last shows the curve."""
SCRAPES = 50


def exporter(pods: int) -> CollectorRegistry:
    """The exporter's registry on a node where each pod has one container with an enclave."""
    processes = [
        EnclaveProcess(
            number, 1, CgroupOwner(f"uid-{number}", f"{number:064x}"), (1, 2), ((0, MIB), (2 * MIB, 3 * MIB))
        )
        for number in range(2, pods + 2)
    ]
    known = [parse_pod(node_pod(number, "n1")) for number in range(2, pods + 2)]
    seen = Seen(count_use(processes), {}, None, 5.0, pods, 0, 0.0)
    metrics = EpcMetrics("n1")
    metrics.node = EpcNode("n1", 168 * MIB)
    metrics.use, metrics.seen, metrics.pods_known = put_together(known, seen, {}), seen, True
    metrics.over = dict.fromkeys((row.labels for row in metrics.use.containers), (Kind.OVER_LIMIT, 60.0))
    registry = component_registry("metrics")
    registry.register(metrics)
    return registry


def helper(pods: int) -> CollectorRegistry:
    """The quote helper's registry after each pod had a quote for its enclave."""
    registry = component_registry("quote-helper")
    metrics = QuoteHelperMetrics(registry, lambda _: None)
    inventory = EnclaveInventory()
    registry.register(inventory)
    quote = enclave_quote(simulated_world(), 0)
    for peer in map(str, range(pods)):
        metrics.request(RequestEvent("GetQuoteEx", "answered", None, None, "", 0.002, 1, 0, 700, 4900, peer, 0.0))
        inventory.record(peer, quote, 0.0)
    return registry


def rows() -> Iterator[Row]:
    for name, registry_of in (("exporter", exporter), ("quote helper", helper)):
        costs = []
        for pods in PODS:
            registry = registry_of(pods)
            page = generate_latest(registry)
            lines = sum(not line.startswith(b"#") for line in page.splitlines())
            seconds = cpu_seconds(lambda registry=registry: generate_latest(registry), calls=3)  # type: ignore[misc]
            costs.append(seconds)
            note = f"{lines:,} series, {number(len(page) / 1024)} KiB; over HTTP {spread(scrapes(registry))}"
            yield Row(f"page of the {name}, {pods:,} pods", seconds * 1e3, "ms", note=note)
        yield Growth(PODS, tuple(costs)).row(f"page of the {name}, by pods")


def scrapes(registry: CollectorRegistry) -> list[float]:
    """Seconds of scrapes over one connection, as Prometheus keeps it."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder, _serving(registry, Path(folder) / "page") as path:
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        found = []
        for _ in range(SCRAPES):
            begin = time.perf_counter()
            connection.request("GET", "/metrics")
            connection.getresponse().read()
            found.append(time.perf_counter() - begin)
        connection.close()
        return found


@contextmanager
def _serving(registry: CollectorRegistry, path: Path) -> Iterator[Path]:
    loop = asyncio.new_event_loop()
    page = StatusPage(f"unix:{path}", {"/metrics": metrics_of(registry)})
    task = loop.create_task(page.run())
    thread = threading.Thread(target=_run, args=(loop, task), daemon=True)
    thread.start()
    while not path.exists():
        time.sleep(0.01)
    try:
        yield path
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(60)
        loop.close()


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    show(rows())
