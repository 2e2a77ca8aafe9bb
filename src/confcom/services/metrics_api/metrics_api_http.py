"""The metrics API over HTTP: an ASGI application, answered from memory, for the front proxy of the API server alone.

The API server authenticates and authorises each request before it passes it on with the front proxy's certificate. So
that certificate is enough for every value, and there is no SubjectAccessReview.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

import structlog
from prometheus_client import CollectorRegistry

from confcom.errors import FormatError
from confcom.protocols import custom_metrics
from confcom.protocols.custom_metrics import FrontProxy
from confcom.services.metrics_api.figures import METRICS, Figures, Refused
from confcom.services.runtime.http_server import JSON, Message, Page, Receive, Send
from confcom.services.runtime.status_page import Metrics
from confcom.services.runtime.tls import IssuedCertificate

PREFIX = "confcom_metrics_api"
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Seconds; 5,000 pods take some 30 ms."""


class MetricsApiMetrics(Metrics):
    """Metrics of the metrics API. `docs/reference/metrics-api.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, PREFIX)
        self.requests = self.counter("requests", "Requests, by HTTP status.", "code")
        self.durations = self.seconds("request_seconds", "What an answer took.", BUCKETS)
        answered = "Exporters in the cluster, by whether they answered the last time."
        self.exporters = self.gauge("exporters", answered, "component", "answered")
        self.oldest = self.gauge("oldest_figures_seconds", "Age of the oldest figures.")
        self.failures = self.counter("cluster_failures", "Times that the Kubernetes API did not do as asked.", "what")

    def show_certificate(self, certificate: IssuedCertificate) -> None:
        """Show the certificate that this replica issued for itself."""
        expires = "When the certificate in use expires."
        self.reading("certificate_expiry_timestamp_seconds", expires, certificate.expiry)
        self.reading("certificate_trusted", "1 while there is a usable CA.", lambda: not certificate.not_ready)


class MetricsApiApp:
    """The application. `front_proxy` may be replaced; without one every request is refused."""

    def __init__(self, figures: Figures, metrics: MetricsApiMetrics, *, clock: Callable[[], datetime]) -> None:
        self.front_proxy: FrontProxy | None = None
        self._figures = figures
        self._metrics = metrics
        self._clock = clock
        self._resources = custom_metrics.resource_list(METRICS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        del receive  # a body is dropped by the server
        begin = time.perf_counter()
        try:
            status, body = 200, self._answer(scope)
        except Refused as refused:
            status, body = refused.status, custom_metrics.failure(refused.status, refused.message)
        except FormatError as error:
            status, body = 400, custom_metrics.failure(400, str(error))
        self._metrics.requests.labels(str(status)).inc()
        self._metrics.durations.observe(time.perf_counter() - begin)
        await Page(status, body, JSON).send(send)

    def _answer(self, scope: Message) -> bytes:
        name = scope["extensions"]["tls"]["client_common_name"]
        if self.front_proxy is None or not self.front_proxy.accepts(name):
            structlog.get_logger().warning("metrics_api.refused", client=scope["client"], certificate=(name or "")[:80])
            raise Refused(401, "only the API server's front proxy is answered here: ask through the Kubernetes API")
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "values can only be read: GET")
        path: str = scope["path"]
        if path == custom_metrics.PATH:
            return self._resources
        if path in custom_metrics.OPENAPI:
            return custom_metrics.OPENAPI[path]
        request = custom_metrics.parse_request(scope["raw_path"], scope["query_string"])
        if request is None:
            raise Refused(
                404, f"there is nothing at {path[:200]!r}: ask {custom_metrics.PATH}/namespaces/NAMESPACE/pods/*/METRIC"
            )
        values = self._figures.answer(request, monotonic=time.monotonic(), now=self._clock())
        return custom_metrics.value_list(request, values)
