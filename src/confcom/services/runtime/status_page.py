"""A daemon's HTTP listener for its health, readiness and metrics; what the metrics of all daemons have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from confcom.errors import ConfigError
from confcom.formats.arguments import parse_tcp_address
from confcom.pki.serving_pair import service_names
from confcom.services.runtime.http_server import Application, Listener, Message, Page, Receive, Send, serve_http
from confcom.services.runtime.process import background, run_until
from confcom.services.runtime.tls import LOOK_EVERY, HeldTls, IssuedCertificate

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
        yield self._family(value=self._read())


class Metrics:
    """Metrics of a daemon, in `registry`; `prefix` and an underscore begin their names."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self.registry = registry
        self._prefix = prefix

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{self._prefix}_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{self._prefix}_{name}", text, labels, registry=self.registry)

    def seconds(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"{self._prefix}_{name}", text, labels, buckets=buckets, registry=self.registry)

    def reading(self, name: str, text: str, read: Callable[[], float | None], *, counter: bool = False) -> None:
        """A gauge or counter that is read at each scrape."""
        self.registry.register(Reading(f"{self._prefix}_{name}", text, read, counter=counter))

    def show_certificate(self, certificate: IssuedCertificate) -> None:
        """Show when the certificate expires that this replica issued for itself."""
        expires = "When the certificate in use expires."
        self.reading("certificate_expiry_timestamp_seconds", expires, certificate.expiry)


def readiness(reason: Callable[[], str]) -> Handler:
    """A /readyz: ready while there is no reason why not."""

    async def show() -> Page:
        found = reason()
        return Page(503, f"{found}\n".encode()) if found else Page(200, b"ok\n")

    return show


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


class IssuedServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a server behind a Service that the API server asks, with certificates that its replicas issue."""

    listen: str = "[::]:8443"
    """HOST:PORT of HTTPS; [::] is every address."""
    http: str = "[::]:9464"
    """HOST:PORT, or unix:PATH, of /healthz, /readyz and /metrics; empty for none."""
    namespace: str
    """Namespace of the Service."""
    service: str
    """The Service that the API server asks; the certificate is for its name."""
    ca: str
    """Folder with tls.crt and tls.key of the CA that the API server trusts; changes are followed."""
    kubeconfig: str | None = None
    """Credentials for the Kubernetes API; else the pod's service account, or the user's own."""
    leave_after: Annotated[float, msgspec.Meta(ge=0)] = 6.0
    """Seconds for which a replica still answers after SIGTERM, so that the API server finds another one first."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Connections at a time; beyond it, the address with most gives up the oldest one that waits for its client."""

    def check(self) -> None:
        """`ConfigError` if a name or an address is wrong."""
        self.names()
        parse_tcp_address(self.listen)
        if self.http:
            parse_address(self.http)

    def names(self) -> tuple[str, ...]:
        return service_names(self.service, self.namespace)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedServer:
    """One replica of such a server, and its status pages.

    `listener` may wait until there can be answers. `not_ready` gives reasons beside those of the certificate. `name`
    begins the event of leaving in the log.
    """

    name: str
    config: IssuedServerConfig
    app: Application
    certificate: IssuedCertificate
    listener: Callable[[HeldTls], Awaitable[Listener]]
    not_ready: Callable[[], str]
    registry: CollectorRegistry
    look_every: float = LOOK_EVERY

    async def run(
        self, *beside: Coroutine[Any, Any, None], stop: asyncio.Event, started: Callable[[str], None] | None
    ) -> None:
        """Serve from the first certificate on, until `leave_after` seconds after `stop` is set.

        `beside` runs for as long. `started` gets the URL.
        """
        serving, ended, config = asyncio.Event(), asyncio.Event(), self.config

        async def answer() -> None:
            listener = await self.listener(await self.certificate.first())
            serving.set()
            await serve_http(self.app, replace(listener, leave_after=config.leave_after), stop=stop, started=started)
            ended.set()

        async def leave() -> None:
            await stop.wait()
            if serving.is_set():
                structlog.get_logger().info(f"{self.name}.leaves", seconds=config.leave_after)
                await ended.wait()
            ended.set()

        def not_ready() -> str:
            return LEAVING if stop.is_set() else self.certificate.not_ready or self.not_ready()

        actors = [answer(), leave(), self.certificate.run(self.look_every), *beside]
        if config.http:
            pages = {"/healthz": alive, "/readyz": readiness(not_ready), "/metrics": metrics_of(self.registry)}
            actors.append(StatusPage(config.http, pages).run())
        await run_until(ended, *actors)


async def serve_issued_page(address: str, pages: Mapping[str, Handler], folder: Path, name: str) -> None:
    """Serve status pages over TLS until cancelled, with a certificate for `name` by the CA in `folder`."""
    certificate = IssuedCertificate(folder, (name,), common_name=name, clock=_now)
    async with background("certificate", certificate.run):
        await StatusPage(address, pages, await certificate.first()).run()


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - services read the clock
