"""The admission webhook: completes pods that use SGX, and refuses those that cannot work, before they exist.

This module has its life cycle: it issues its certificate by a CA that the API server trusts and answers reviews. On
SIGTERM it first closes each caller's connection after the next answer, so that callers find another replica, then ends.
`webhook_http` has the paths, `reviews` the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from confcom.admission.decision import AdmissionContext
from confcom.admission.pod_json import Grants
from confcom.admission.quote_modes import Wiring
from confcom.cluster.nodes import drained, watch_nodes
from confcom.errors import ConfcomError, ConfigError
from confcom.formats.arguments import parse_tcp_address
from confcom.pki.serving_pair import service_names
from confcom.protocols.admission import NAMESPACE, SERVICE
from confcom.protocols.epc import MIB
from confcom.services.runtime.http_server import Listener
from confcom.services.runtime.process import Seconds, repeat
from confcom.services.runtime.status_page import IssuedServer, component_registry
from confcom.services.runtime.tls import HeldTls, IssuedCertificate, read_authorities
from confcom.services.webhook.webhook_http import WebhookApp, WebhookMetrics

COMMON_NAME = "confcom admission webhook"
OUTPUT_MEMORY = 16 << 20
"""Bytes of answers that callers have not read yet."""
RETRY_MAX = 30.0
"""Most seconds between two attempts to watch the nodes; the first is 1, and it doubles."""


_DAY = 24 * 3600.0


class WebhookConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the webhook; the defaults are those for production."""

    listen: str = "[::]:8443"
    """HOST:PORT of HTTPS, which the API server calls; [::] is every address."""
    http: str = "[::]:9464"
    """HOST:PORT, or unix:PATH, of /healthz, /readyz and /metrics; empty for none."""
    namespace: str = NAMESPACE
    """Namespace of the Service."""
    service: str = SERVICE
    """The Service that the API server calls; the certificate is for its name."""
    hosts: str = ""
    """Further names and addresses of the certificate, with commas between."""
    ca: str = "/etc/confcom/webhook-ca"
    """Folder with tls.crt and tls.key of the CA that the webhook configurations trust; changes are followed."""
    client_ca: str | None = None
    """PEM file of the authority that signed the API server's client certificate; without it any client may ask."""
    kubeconfig: str | None = None
    """Credentials for the Kubernetes API; else the pod's service account, or the user's own."""

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
    leave_after: Annotated[float, msgspec.Meta(ge=0)] = 6.0
    """Seconds for which a replica still answers after SIGTERM, so that callers find another one first."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=1)] = 6.0
    """Seconds that reviews in flight get then."""

    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Connections at a time; beyond it, the address with most gives up the oldest one that waits for its client."""
    body_memory: Annotated[int, msgspec.Meta(ge=8 << 20)] = 32 << 20
    """Bytes of all bodies that are being read; the largest makes room."""
    body_timeout: Seconds = 5.0
    """Seconds for a body: as long as the API server waits."""
    idle_timeout: Annotated[float, msgspec.Meta(ge=1)] = 150.0
    """Seconds that a connection may stay without a review; more than the 90 after which the API server closes it."""

    def check(self) -> None:
        """`ConfigError` if grants, names or the address are wrong."""
        self.grants()
        self.names()
        parse_tcp_address(self.listen)

    def grants(self) -> Grants:
        """Who may hold the provisioning device."""
        return Grants.parse(self.provision_grants)

    def names(self) -> tuple[str, ...]:
        """Names and addresses of the certificate."""
        return service_names(self.service, self.namespace, self.hosts, setting="hosts")


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
        """Serve until `stop` is set and callers have left."""
        server = IssuedServer(
            service="webhook",
            app=self._app,
            certificate=self._certificate,
            listener=self._listener,
            not_ready=self._not_ready,
            registry=self._metrics.registry,
            http=self._config.http,
            leave_after=self._config.leave_after,
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
