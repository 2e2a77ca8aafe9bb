"""The admission webhook: completes pods that use SGX, and refuses those that cannot work, before they exist.

`review` answers an AdmissionReview: parses it, decides on the pod, encodes the response. `WebhookApp` serves that over
HTTP with bounded bodies and one log event per review. `serve` has the life cycle: it issues its certificate by a CA
that the API server trusts. On SIGTERM it first closes each caller's connection after the next answer, so that callers
find another replica, then ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from confcom.admission.decision import AdmissionContext, Decision, decide_debug, decide_pod
from confcom.admission.findings import REFUSALS, WARNINGS, Finding, Findings
from confcom.admission.pod_json import Grants
from confcom.admission.quote_modes import Wiring
from confcom.cluster.nodes import drained, watch_nodes
from confcom.errors import ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import parse_tcp_address
from confcom.pki.serving_pair import service_names
from confcom.protocols.admission import (
    DEBUG,
    MAX_REVIEW,
    MAX_VALUES,
    MUTATE_PATH,
    NAMESPACE,
    NEW_POD,
    SERVICE,
    VALIDATE_PATH,
    AdmissionRequest,
    Json,
    Operation,
    allowance,
    difference,
    has_more_values,
    parse_object,
    parse_review,
    refusal,
)
from confcom.protocols.epc import MIB
from confcom.services.runtime.http_server import JSON, Listener, Message, Page, Receive, Send
from confcom.services.runtime.process import Seconds, repeat
from confcom.services.runtime.status_page import IssuedServer, IssuedServerConfig, Metrics, component_registry
from confcom.services.runtime.tls import HeldTls, IssuedCertificate, read_authorities

COMMON_NAME = "confcom admission webhook"
OUTPUT_MEMORY = 16 << 20
"""Bytes of answers that callers have not read yet."""
RETRY_MAX = 30.0
"""Most seconds between two attempts to watch the nodes; the first is 1, and it doubles."""


_DAY = 24 * 3600.0


class WebhookConfig(IssuedServerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the webhook; the defaults are those for production."""

    namespace: str = NAMESPACE
    service: str = SERVICE
    ca: str = "/etc/confcom/webhook-ca"
    hosts: str = ""
    """Further names and addresses of the certificate, with commas between."""
    client_ca: str | None = None
    """PEM file of the authority that signed the API server's client certificate; without it any client may ask."""
    provision_grants: str = ""
    """Who may hold the provisioning device: NAMESPACE/SERVICEACCOUNT or NAMESPACE/*, with commas between."""
    oversized: Literal["refuse", "warn"] = "refuse"
    """Answer to a pod that requests more EPC than any node has; warn where larger nodes are made on demand."""
    quote_helper: bool = True
    """Whether the quote helper is enabled; if it is not, pods that ask it are warned."""
    wiring: Wiring = "plugin"
    """What brings the helper's folder into containers: our device plugin, or a volume of the host (host-path), which
    takes no plugin but is forbidden by Pod Security from `baseline` on."""

    lifetime: Seconds = 30 * _DAY
    """Seconds that a certificate is valid; after half of them another one is issued."""
    look_every: Seconds = 5.0
    """Seconds between two reads of the CA."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=1)] = 6.0
    """Seconds that reviews in flight get then."""

    body_memory: Annotated[int, msgspec.Meta(ge=8 << 20)] = 32 << 20
    """Bytes of all bodies that are being read; the largest makes room."""
    body_timeout: Seconds = 5.0
    """Seconds for a body: as long as the API server waits."""
    idle_timeout: Annotated[float, msgspec.Meta(ge=1)] = 150.0
    """Seconds that a connection may stay without a review; more than the 90 after which the API server closes it."""

    def check(self) -> None:
        """`ConfigError` if grants, names or an address are wrong."""
        super().check()
        self.grants()

    def grants(self) -> Grants:
        """Who may hold the provisioning device."""
        return Grants.parse(self.provision_grants)

    def names(self) -> tuple[str, ...]:
        return service_names(self.service, self.namespace, self.hosts, setting="hosts")


Task = Literal["mutate", "validate"]
Outcome = Literal["allowed", "patched", "refused"]
MAX_NAMED_PATHS = 6


class ReviewEvent(NamedTuple):
    """The outcome of a review for log and metrics; of the pod only names and amounts."""

    task: Task
    outcome: Outcome
    uid: str
    namespace: str
    pod: str
    operation: str
    """What the API server is about to do, such as `UPDATE pods/ephemeralcontainers`."""
    debug: bool
    """Whether ephemeral containers were reviewed."""
    dry_run: bool
    epc: int = 0
    """MiB that the pod takes of one node."""
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    changes: int = 0
    """Operations of the patch."""


def review(data: bytes, task: Task, context_of: Callable[[str], AdmissionContext]) -> tuple[bytes, ReviewEvent]:
    """Answer a review; `context_of` gives the context of a namespace. `FormatError` if it is no AdmissionReview.

    A malformed pod is refused. Other operations than a new pod or new ephemeral containers are let through: they cannot
    bring SGX to a pod. The API server sends them if the rules of the webhook's configurations were widened.
    """
    request = parse_review(data)
    pod: Json = {}
    if request.what not in (NEW_POD, DEBUG):
        return _answer(request, pod, Decision(pod, (), (), 0), [], task)
    size = Findings()
    if has_more_values(request.object) or has_more_values(request.old_object):
        size.refuse("too-many", count=f"more than {MAX_VALUES}", things="values", limit=MAX_VALUES)
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
    if request.what == DEBUG:
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
        operation=request.what[:100],
        debug=request.what == DEBUG,
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
        self._reviews.labels(event.task, event.outcome).inc()
        self._seconds.observe(seconds)
        for code in event.refusals:
            self._refusals.labels(code).inc()
        for code in event.warnings:
            self._warnings.labels(code).inc()

    def show_certificate(self, certificate: IssuedCertificate) -> None:
        """Show the certificate that this replica issued for itself."""
        super().show_certificate(certificate)
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
        self._log.info("admission.review", duration_ms=round(seconds * 1000, 3), **event._asdict())

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


async def serve(
    config: WebhookConfig,
    *,
    clock: Callable[[], datetime],
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
    registry: CollectorRegistry | None = None,
) -> None:
    """Serve until `stop` is set, then for as long as callers need to find another replica.

    `started` receives the URL. `ConfigError` without credentials for the Kubernetes API.
    """
    await _Webhook(config, clock, registry or component_registry("webhook")).run(stop, started)


class _Webhook:
    """One replica."""

    def __init__(self, config: WebhookConfig, clock: Callable[[], datetime], registry: CollectorRegistry) -> None:
        self._config = config
        self._grants = config.grants()
        self._largest_node: int | None = None
        self._client_authority: bytes | None = None
        if config.client_ca is not None:
            self._client_authority = read_authorities(Path(config.client_ca), "the authority of clients")
        self._drained = False
        self._metrics = WebhookMetrics(registry)
        self._certificate = IssuedCertificate(
            Path(config.ca),
            config.names(),
            lifetime=timedelta(seconds=config.lifetime),
            common_name=COMMON_NAME,
            clock=clock,
        )
        self._metrics.show_certificate(self._certificate)
        self._app = WebhookApp(self._context_of, self._metrics, body_memory=config.body_memory)

    async def run(self, stop: asyncio.Event, started: Callable[[str], None] | None) -> None:
        server = IssuedServer(
            name="webhook",
            config=self._config,
            app=self._app,
            certificate=self._certificate,
            listener=self._listener,
            not_ready=self._not_ready,
            registry=self._metrics.registry,
            look_every=self._config.look_every,
        )
        nodes = repeat(self._watch_nodes, self._nodes_failed, pause=0.0, longest=RETRY_MAX)
        await server.run(nodes, stop=stop, started=started)

    async def _listener(self, tls: HeldTls) -> Listener:
        config = self._config
        if self._client_authority is not None:
            tls.require_client(self._client_authority)
        return Listener(
            address=parse_tcp_address(config.listen),
            tls=tls,
            max_connections=config.max_connections,
            body_timeout=config.body_timeout,
            idle_timeout=config.idle_timeout,
            drain_timeout=config.drain_timeout,
            output_memory=OUTPUT_MEMORY,
        )

    def _context_of(self, namespace: str) -> AdmissionContext:
        return AdmissionContext(
            namespace=namespace,
            grants=self._grants,
            largest_node=self._largest_node,
            oversized_waits=self._config.oversized == "warn",
            helper=self._config.quote_helper,
            wiring=self._config.wiring,
        )

    async def _watch_nodes(self) -> None:
        """Keep the size of the largest node; while the API cannot be read, the last size counts."""
        async for nodes in watch_nodes(self._config.kubeconfig):
            self._drained = drained(nodes.values())
            self._largest_node = max((node.epc for node in nodes.values()), default=0) // MIB
            self._metrics.largest_node.set(self._largest_node)

    def _nodes_failed(self, error: ConfcomError) -> None:
        if isinstance(error, ConfigError) and self._largest_node is None:
            raise error  # unusable credentials, from the start
        self._metrics.failures.labels("nodes").inc()
        structlog.get_logger().warning("webhook.nodes", outcome="waits", reason=str(error))

    def _not_ready(self) -> str:
        # The disruption budget lets unready pods be evicted: without that the last node could not be drained.
        return "every node is being drained, so no other replica can take over" if self._drained else ""
