"""The webhook over HTTP: an ASGI application with two paths, bounded bodies, and one log event per review."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from confcom.admission.decision import AdmissionContext
from confcom.admission.findings import REFUSALS, WARNINGS
from confcom.errors import FormatError
from confcom.protocols.admission import MAX_REVIEW, MUTATE_PATH, VALIDATE_PATH
from confcom.services.runtime.http_server import JSON, Message, Page, Receive, Send
from confcom.services.runtime.status_page import Reading
from confcom.services.runtime.tls import IssuedCertificate
from confcom.services.webhook.reviews import Outcome, ReviewEvent, Task, review

PREFIX = "confcom_webhook"
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds; a usual review takes about 0.2 ms, and the API server waits 5 s at most."""


class WebhookMetrics:
    """Metrics of the webhook, in `registry`. `docs/reference/webhook.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, registry=registry)

        self._reviews = counter("reviews", "Reviews answered, by outcome.", "task", "outcome")
        self._refusals = counter("refusals", "Reasons for which pods were refused.", "code")
        self._warnings = counter("warnings", "Warnings given along with a pod that was let through.", "code")
        self.rejected = counter("rejected_requests", "Requests that were no review, by HTTP status.", "status")
        self._seconds = Histogram(
            f"{PREFIX}_review_seconds", "From the body to the answer.", buckets=BUCKETS, registry=registry
        )
        self.failures = counter("cluster_failures", "Times that the Kubernetes API did not do as asked.", "what")
        self.largest_node = gauge("largest_node_epc_mib", "MiB of EPC of the node that has most.")
        # Beforehand, so that the first of each kind is an increase.
        for code in REFUSALS:
            self._refusals.labels(code)
        for code in WARNINGS:
            self._warnings.labels(code)
        for task in TASKS.values():
            for outcome in get_args(Outcome):
                self._reviews.labels(task, outcome)
        self.failures.labels("nodes")

    def observe(self, event: ReviewEvent, seconds: float) -> None:
        """Count a review."""
        self._reviews.labels(event.task, event.outcome).inc()
        self._seconds.observe(seconds)
        for code in event.refusals:
            self._refusals.labels(code).inc()
        for code in event.warnings:
            self._warnings.labels(code).inc()

    def show_certificate(self, certificate: IssuedCertificate) -> None:
        """Show the certificate that this replica issued for itself."""
        for name, text, read in (
            ("certificate_expiry_timestamp_seconds", "When the certificate in use expires.", certificate.expiry),
            ("ready", "1 while there is a CA for the certificate that is served.", lambda: not certificate.not_ready),
        ):
            self.registry.register(Reading(f"{PREFIX}_{name}", text, read))
        changes = "Times that this replica took another certificate into use."
        self.registry.register(
            Reading(f"{PREFIX}_certificate_changes", changes, lambda: certificate.changes, counter=True)
        )


TASKS: Mapping[str, Task] = {MUTATE_PATH: "mutate", VALIDATE_PATH: "validate"}


class _Rejected(Exception):
    """A request that is no review."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class WebhookApp:
    """The ASGI application. `context_of` gives the context of a namespace; `body_memory` limits all bodies together."""

    def __init__(
        self,
        context_of: Callable[[str], AdmissionContext],
        metrics: WebhookMetrics,
        *,
        body_memory: int = 8 * MAX_REVIEW,
    ) -> None:
        self._context_of = context_of
        self._metrics = metrics
        self._bodies = _Bodies(body_memory)
        self._log = structlog.get_logger()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            task = _task(scope)
            body = await self._bodies.read(receive)
            begin = time.perf_counter()
            answer, event = review(body, task, self._context_of)
        except (_Rejected, FormatError) as error:
            status = error.status if isinstance(error, _Rejected) else 400
            await self._reject(send, status, str(error))
        except Exception:  # noqa: BLE001 - a bug must not look like a network failure
            self._log.exception("admission.mistake", path=str(scope["path"])[:100])
            await self._reject(send, 500, "a mistake of the webhook; its log has more")
        else:
            seconds = time.perf_counter() - begin
            self._observe(event, seconds)
            await Page(200, answer, JSON).send(send)

    def _observe(self, event: ReviewEvent, seconds: float) -> None:
        self._metrics.observe(event, seconds)
        self._log.info("admission.review", duration_ms=round(seconds * 1000, 3), **event.as_dict())

    async def _reject(self, send: Send, status: int, message: str) -> None:
        self._metrics.rejected.labels(str(status)).inc()
        self._log.warning("admission.rejected", status=status, reason=message[:200])
        await Page(status, f"{message[:500]}\n".encode()).send(send)


class _Bodies:
    """Reads bodies. If all that are being read exceed the limit, the largest is dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._open: dict[object, bytearray] = {}

    async def read(self, receive: Receive) -> bytes:
        """A whole body."""
        own, more = object(), True
        body = self._open[own] = bytearray()
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Rejected(400, "the request ended before its body")
                if own in self._open:
                    self._add(own, message.get("body", b""))
                if own not in self._open:
                    raise _Rejected(503, "too much is being sent at once, and this was the largest body")
                more = message.get("more_body", False)
            return bytes(body)
        finally:
            self._drop(own)

    def _add(self, own: object, piece: bytes) -> None:
        self._open[own] += piece
        self._total += len(piece)
        if len(self._open[own]) > MAX_REVIEW:
            raise _Rejected(413, f"a review has at most {MAX_REVIEW} bytes")
        if self._total > self._limit:
            self._drop(max(self._open, key=lambda one: len(self._open[one])))

    def _drop(self, one: object) -> None:
        body = self._open.pop(one, None)
        if body is not None:
            self._total -= len(body)
            body.clear()


def _task(scope: Message) -> Task:
    found = TASKS.get(scope["path"])
    if found is None:
        raise _Rejected(404, f"there are {' and '.join(TASKS)}")
    if scope["method"] != "POST":
        raise _Rejected(405, "reviews are posted")
    return found
