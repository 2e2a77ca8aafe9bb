"""A daemon's HTTP listener for its health, readiness and metrics; what the metrics of all daemons have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from confcom.errors import ConfigError
from confcom.formats.arguments import parse_tcp_address
from confcom.services.runtime.http_server import Listener, Message, Page, Receive, Send, serve_http
from confcom.services.runtime.tls import HeldTls

MAX_CONNECTIONS = 64
TIMEOUT = 5.0
"""Seconds for a request, and for a client to take the next part of its answer."""
IDLE = 30.0
"""Seconds that a connection stays without a request: Prometheus asks every 15 to 60 s."""
DRAIN = 1.0
"""Seconds that an answer gets when the daemon stops."""
RETRY = 0.5
"""Seconds between attempts to listen while a predecessor still holds the address."""
LEAVING = "leaving: told to stop"
"""Why a replica that still answers is not ready (`Listener.leave_after`)."""

Handler = Callable[[], Awaitable[Page]]


async def alive() -> Page:
    """A /healthz: an answer shows that the event loop runs."""
    return Page(200, b"ok\n")


def metrics_of(registry: CollectorRegistry) -> Handler:
    """A /metrics: everything that the registry holds."""

    async def show() -> Page:
        return Page(200, generate_latest(registry), CONTENT_TYPE_LATEST)

    return show


def component_registry(component: str) -> CollectorRegistry:
    """The registry of a daemon, with `confcom_build_info`."""
    # One more series per counter, of which Prometheus makes no use.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    build = Info("confcom_build", "The component that answers, and its version.", registry=registry)
    build.info({"component": component, "version": version("confcom")})
    return registry


class Reading(Collector):
    """A gauge or counter without labels that is read at each scrape.

    There is no sample while `read` returns None: a 0 would be taken for a measurement.
    """

    def __init__(self, name: str, text: str, read: Callable[[], float | None], *, counter: bool = False) -> None:
        self._family = partial(CounterMetricFamily if counter else GaugeMetricFamily, name, text)
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Its sample, if there is one."""
        yield self._family(value=self._read())


class StatusPage:
    """Serves the pages of a table from path to handler at `HOST:PORT`, `[ADDRESS]:PORT` or `unix:PATH`."""

    def __init__(self, address: str, pages: Mapping[str, Handler], tls: HeldTls | None = None) -> None:
        self._pages = pages
        self._listener = Listener(
            address=parse_address(address),
            tls=tls,
            max_connections=MAX_CONNECTIONS,
            max_head=8 * 1024,
            head_timeout=TIMEOUT,
            body_timeout=TIMEOUT,
            write_timeout=TIMEOUT,
            idle_timeout=IDLE,
            drain_timeout=DRAIN,
        )

    async def run(self) -> None:
        """Serve until cancelled; while the address is taken, such as by a predecessor, try again."""
        logged = ""
        while True:
            try:
                await serve_http(self._answer, self._listener, stop=asyncio.Event())
            except ConfigError as error:
                if error.message != logged:
                    structlog.get_logger().warning("status_page", outcome="waits", reason=error.message)
                    logged = error.message
                await asyncio.sleep(RETRY)

    async def _answer(self, scope: Message, _receive: Receive, send: Send) -> None:
        handler = self._pages.get(scope["path"])
        if scope["method"] not in ("GET", "HEAD"):
            page = Page(405, b"only GET and HEAD\n")
        elif handler is None:
            page = Page(404, f"there are {', '.join(self._pages)}\n".encode())
        else:
            page = await handler()
        await page.send(send)


def parse_address(address: str) -> Path | tuple[str, int]:
    """Read HOST:PORT, [ADDRESS]:PORT or unix:PATH; else a `ConfigError`."""
    if address.startswith("unix:") and len(address) > len("unix:"):
        return Path(address.removeprefix("unix:"))
    return parse_tcp_address(address, advice="Write it as 0.0.0.0:9464, [::]:9464 or unix:PATH.")
