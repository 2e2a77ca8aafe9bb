"""Metrics of the admission webhook, on a registry that the caller brings. An observer of reviews like the log."""

from __future__ import annotations

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from confcom.services.webhook_reviews import ReviewEvent

PREFIX = "confcom_webhook"
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds; a usual review takes some 0.2 ms, and after 5 s nobody waits any more."""


class WebhookMetrics:
    """Everything that the webhook counts. `docs/reference/webhook.md` explains each."""

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
        self._expires = gauge("certificate_expiry_timestamp_seconds", "When the certificate in use expires.")
        self._rotations = counter("certificate_changes", "Times that this replica took another certificate into use.")
        self._ready = gauge("ready", "1 while there is a CA for the certificate that is served.")
        self.failures = counter("cluster_failures", "Times that the Kubernetes API did not do as asked.", "what")
        self.largest_node = gauge("largest_node_epc_mib", "MiB of EPC of the node that has most.")

    def observe(self, event: ReviewEvent, seconds: float) -> None:
        """Count a review."""
        self._reviews.labels(event.task, event.outcome).inc()
        self._seconds.observe(seconds)
        for code in event.refusals:
            self._refusals.labels(code).inc()
        for code in event.warnings:
            self._warnings.labels(code).inc()

    def certificate_served(self, expires: datetime) -> None:
        """Another certificate is in use."""
        self._rotations.inc()
        self._expires.set(expires.timestamp())

    def certificate_trusted(self, trusted: bool) -> None:
        """Whether there is a CA that the API server may trust."""
        self._ready.set(trusted)
