"""The metrics API: a small aggregated API server for custom.metrics.k8s.io/v1beta2, which HPA asks.

This module has its life cycle. Every answer is made from memory, so no answer waits for an exporter or for the API
server: `exporters` reads the nodes, `figures` answers, `metrics_api_http` has the paths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from confcom.cluster.nodes import scaled_pods
from confcom.cluster.objects import ClusterObjects, Ref
from confcom.errors import ClusterError, ConfcomError, ConfigError
from confcom.formats.arguments import parse_tcp_address
from confcom.protocols.custom_metrics import EXPORTER_PORT, ScaledPod, parse_front_proxy
from confcom.services.metrics_api.exporters import Exporters
from confcom.services.metrics_api.figures import Figures
from confcom.services.metrics_api.metrics_api_config import MetricsApiConfig
from confcom.services.metrics_api.metrics_api_http import MetricsApiApp, MetricsApiMetrics
from confcom.services.runtime.http_server import Listener
from confcom.services.runtime.process import repeat
from confcom.services.runtime.status_page import IssuedServer, component_registry
from confcom.services.runtime.tls import HeldTls, IssuedCertificate

FRONT_PROXY = Ref("v1", "ConfigMap", "kube-system", "extension-apiserver-authentication")
"""Where the API server publishes its front proxy's CA."""
FRONT_PROXY_EVERY = 60.0
"""Seconds between two reads of it."""
RETRY_MAX = 30.0
"""Most seconds between two attempts to reach the API; the first is 1, and it doubles."""
IDLE = 150.0
"""Seconds that a connection may stay without a request; more than the 90 after which the API server closes it."""


async def serve(
    config: MetricsApiConfig,
    *,
    clock: Callable[[], datetime],
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
    registry: CollectorRegistry | None = None,
    exporter_port: int = EXPORTER_PORT,
) -> None:
    """Serve until `stop` is set, then for as long as the API server needs to find another replica.

    `started` receives the URL. `ConfigError` without credentials for the Kubernetes API.
    """
    api = _MetricsApi(config, clock, registry or component_registry("metrics-api"), exporter_port)
    await api.run(stop, started)


class _MetricsApi:
    """One replica."""

    def __init__(
        self, config: MetricsApiConfig, clock: Callable[[], datetime], registry: CollectorRegistry, exporter_port: int
    ) -> None:
        config.check()
        self._config = config
        self._metrics = MetricsApiMetrics(registry)
        self._pods = scaled_pods(config.kubeconfig)
        self._figures = Figures(self._all_pods, stale_after=config.stale_after)
        self._exporters = Exporters(config, self._all_pods, self._figures, self._metrics, port=exporter_port)
        self._app = MetricsApiApp(self._figures, self._metrics, clock=clock)
        self._certificate = IssuedCertificate(
            Path(config.ca), config.names(), common_name="confcom metrics API", clock=clock
        )
        self._metrics.show_certificate(self._certificate)
        self._front_proxy_known = asyncio.Event()
        self._no_front_proxy = "the front proxy's CA has not been read yet"
        self._tls: HeldTls | None = None

    async def run(self, stop: asyncio.Event, started: Callable[[str], None] | None) -> None:
        """Answer until `stop` is set and callers have left."""
        server = IssuedServer(
            service="metrics_api",
            app=self._app,
            certificate=self._certificate,
            listener=self._listener,
            not_ready=self._not_ready,
            registry=self._metrics.registry,
            http=self._config.http,
            leave_after=self._config.leave_after,
        )
        await server.run(
            repeat(self._pods.follow, self._failed("pods"), pause=1.0, longest=RETRY_MAX),
            repeat(self._read_front_proxy, self._failed("front-proxy"), pause=FRONT_PROXY_EVERY, longest=RETRY_MAX),
            self._ask_exporters(),
            stop=stop,
            started=started,
        )

    def _all_pods(self) -> Iterable[ScaledPod]:
        return self._pods.pods.values()

    async def _listener(self, tls: HeldTls) -> Listener:
        """The listener; waits until the front proxy's CA is known."""
        await self._front_proxy_known.wait()
        if self._app.front_proxy is not None:
            tls.require_client(self._app.front_proxy.authority)
        self._tls = tls
        address = parse_tcp_address(self._config.listen)
        return Listener(address=address, tls=tls, max_connections=self._config.max_connections, idle_timeout=IDLE)

    async def _ask_exporters(self) -> None:
        while not self._pods.known:
            await asyncio.sleep(0.1)
        await self._exporters.run()

    async def _read_front_proxy(self) -> None:
        async with ClusterObjects.open(self._config.kubeconfig, None, "confcom-metrics-api") as cluster:
            found = await cluster.get(FRONT_PROXY)
        if found is None:
            raise ClusterError(f"there is no {FRONT_PROXY}: this cluster has no aggregation")
        proxy = parse_front_proxy(found.get("data") or {})
        former = self._app.front_proxy
        if self._tls is not None and (former is None or former.authority != proxy.authority):
            self._tls.require_client(proxy.authority)
        self._app.front_proxy, self._no_front_proxy = proxy, ""
        self._front_proxy_known.set()

    def _failed(self, what: str) -> Callable[[ConfcomError], None]:
        def note(error: ConfcomError) -> None:
            if isinstance(error, ConfigError) and not self._pods.known:
                raise error  # unusable credentials, from the start
            self._metrics.failures.labels(what).inc()
            structlog.get_logger().warning("metrics_api.cluster", what=what, reason=error.message)
            if what == "front-proxy" and self._app.front_proxy is None:
                self._no_front_proxy = error.message

        return note

    def _not_ready(self) -> str:
        if self._no_front_proxy or self._exporters.asked:
            return self._no_front_proxy
        return "the exporters have not been asked yet" if self._pods.known else "the pods are not known yet"
