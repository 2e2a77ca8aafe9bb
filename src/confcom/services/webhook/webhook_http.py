"""The webhook over HTTP: an ASGI application with two paths, bounded bodies, and one log event per review.

`review` answers an AdmissionReview: parses it, decides on the pod, encodes the response.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import structlog
from prometheus_client import CollectorRegistry

from confcom.admission.decision import AdmissionContext, Decision, check_count, decide_debug, decide_pod
from confcom.admission.findings import REFUSALS, WARNINGS, Finding, Findings
from confcom.errors import FormatError
from confcom.protocols.admission import (
    MAX_REVIEW,
    MUTATE_PATH,
    VALIDATE_PATH,
    AdmissionRequest,
    Json,
    Operation,
    allowance,
    count_values,
    difference,
    parse_object,
    parse_review,
    refusal,
)
from confcom.services.runtime.http_server import JSON, Message, Page, Receive, Send
from confcom.services.runtime.status_page import Metrics
from confcom.services.runtime.tls import IssuedCertificate

Task = Literal["mutate", "validate"]
Outcome = Literal["allowed", "patched", "refused"]
MAX_NAMED_PATHS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewEvent:
    """The outcome of a review for log and metrics; of the pod only names and amounts."""

    task: Task
    outcome: Outcome
    uid: str
    namespace: str
    pod: str
    debug: bool
    """Whether ephemeral containers were reviewed."""
    dry_run: bool
    epc: int = 0
    """MiB that the pod takes of one node."""
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    changes: int = 0
    """Operations of the patch."""

    def as_dict(self) -> dict[str, object]:
        """The event for the log."""
        return {name: getattr(self, name) for name in self.__slots__}


def review(data: bytes, task: Task, context_of: Callable[[str], AdmissionContext]) -> tuple[bytes, ReviewEvent]:
    """Answer a review; `context_of` gives the context of a namespace. `FormatError` if it is no AdmissionReview.

    A malformed pod is refused.
    """
    request = parse_review(data)
    pod: Json = {}
    size = Findings()
    check_count("values", count_values(request.object) + count_values(request.old_object), size)
    refused = tuple(size.refusals)
    if not refused:
        try:
            pod = parse_object(request.object)
            decision = _decide(request, pod, context_of(request.namespace))
        except FormatError as error:
            refused = (Finding("malformed-pod", f"{error.message}. {error.advice()}"),)
        except RecursionError:
            refused = (Finding("malformed-pod", "The pod is nested too deeply."),)
    if refused:
        decision = Decision(pod, refused, (), 0)
    changes = difference(pod, decision.pod)
    if task == "validate" and changes and not decision.refusals:
        decision = decision._replace(refusals=(_incomplete(changes),))
    return _answer(request, pod, decision, changes, task)


def _decide(request: AdmissionRequest, pod: Json, context: AdmissionContext) -> Decision:
    if request.sub_resource == "ephemeralcontainers":
        return decide_debug(pod, parse_object(request.old_object), context)
    return decide_pod(pod, context)


def _answer(
    request: AdmissionRequest, pod: Json, decision: Decision, changes: list[Operation], task: Task
) -> tuple[bytes, ReviewEvent]:
    # Both tasks find the same warnings; the client should read them once.
    warnings = [finding.sentence for finding in decision.warnings] if task == "mutate" else []
    outcome: Outcome = "allowed"
    if decision.refusals:
        outcome, changes = "refused", []
        denied = any(finding.code == "provision-not-granted" for finding in decision.refusals)
        answer = refusal(
            request.uid,
            " ".join(finding.sentence for finding in decision.refusals),
            status=403 if denied else 422,
            reason="Forbidden" if denied else "Invalid",
            warnings=warnings,
        )
    else:
        outcome = "patched" if changes else "allowed"
        answer = allowance(request.uid, patch=changes, warnings=warnings)
    return answer, ReviewEvent(
        task=task,
        outcome=outcome,
        uid=request.uid[:64],
        namespace=request.namespace[:253],
        pod=_name(request, pod),
        debug=request.sub_resource == "ephemeralcontainers",
        dry_run=bool(request.dry_run),
        epc=decision.epc,
        refusals=tuple(finding.code for finding in decision.refusals),
        warnings=tuple(finding.code for finding in decision.warnings),
        changes=len(changes),
    )


def _name(request: AdmissionRequest, pod: Json) -> str:
    """The pod's name; of a pod that a controller makes, only the prefix is known yet."""
    metadata: object = pod.get("metadata")
    found = request.name or (metadata.get("generateName") if isinstance(metadata, dict) else "")
    return found[:253] if isinstance(found, str) else ""


def _incomplete(changes: list[Operation]) -> Finding:
    paths = ", ".join(str(change["path"])[:120] for change in changes[:MAX_NAMED_PATHS])
    return Finding("incomplete", REFUSALS["incomplete"].format(paths=paths))


PREFIX = "confcom_webhook"
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds; a usual review takes about 0.2 ms, and the API server waits 5 s at most."""


class WebhookMetrics(Metrics):
    """Metrics of the webhook. `docs/reference/webhook.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, PREFIX)
        self._reviews = self.counter("reviews", "Reviews answered, by outcome.", "task", "outcome")
        self._refusals = self.counter("refusals", "Reasons for which pods were refused.", "code")
        self._warnings = self.counter("warnings", "Warnings given along with a pod that was let through.", "code")
        self.rejected = self.counter("rejected_requests", "Requests that were no review, by HTTP status.", "status")
        self._seconds = self.seconds("review_seconds", "From the body to the answer.", BUCKETS)
        self.failures = self.counter("cluster_failures", "Times that the Kubernetes API did not do as asked.", "what")
        self.largest_node = self.gauge("largest_node_epc_mib", "MiB of EPC of the node that has most.")
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
        expires = "When the certificate in use expires."
        self.reading("certificate_expiry_timestamp_seconds", expires, certificate.expiry)
        trusted = "1 while there is a CA for the certificate that is served."
        self.reading("ready", trusted, lambda: not certificate.not_ready)
        changes = "Times that this replica took another certificate into use."
        self.reading("certificate_changes", changes, lambda: certificate.changes, counter=True)


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
