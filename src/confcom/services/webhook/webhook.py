"""The admission webhook: completes pods that use SGX, and refuses those that cannot work, before they exist.

This module has its life cycle: it issues its certificate by a CA that the API server trusts and answers reviews. On
SIGTERM it first closes each caller's connection after the next answer, so that callers find another replica, then ends.
`webhook_http` has the paths, `reviews` the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from confcom.admission.decision import AdmissionContext
from confcom.cluster.nodes import drained, watch_nodes
from confcom.errors import ClusterError, ConfigError
from confcom.protocols.epc import MIB
from confcom.services.runtime.http_server import Listener
from confcom.services.runtime.issued_certificate import IssuedCertificate, serve_issued
from confcom.services.runtime.status_page import Handler, Page, StatusPage, alive, component_registry, metrics_of
from confcom.services.runtime.tls import HeldTls
from confcom.services.webhook.webhook_config import WebhookConfig
from confcom.services.webhook.webhook_http import WebhookApp, WebhookMetrics

__all__ = ["WebhookConfig", "serve"]

COMMON_NAME = "confcom admission webhook"
MAX_AUTHORITY = 64 * 1024
"""Bytes of the file with the authority of clients."""
OUTPUT_MEMORY = 16 << 20
"""Bytes of answers that callers have not read yet."""
WATCH_AGAIN = (1.0, 5.0, 30.0)
"""Seconds until the nodes are watched again after a failure; the last one repeats."""


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
    webhook = _Webhook(config, clock, registry or component_registry("webhook"))
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(task, name=name) for name, task in webhook.tasks().items()]
        tasks.append(asyncio.create_task(webhook.run(stop, started), name="serve"))
        for task in tasks:
            stack.push_async_callback(_end, task)
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


class _Webhook:
    """One replica."""

    def __init__(self, config: WebhookConfig, clock: Callable[[], datetime], registry: CollectorRegistry) -> None:
        self._config = config
        self._grants = config.grants()
        self._largest_node: int | None = None
        self._client_authority = _read_authority(config.client_ca)
        self._drained = False
        self._metrics = WebhookMetrics(registry)
        self._leaving = False
        self._certificate = IssuedCertificate(
            Path(config.ca),
            config.names(),
            self._metrics,
            lifetime=timedelta(seconds=config.lifetime),
            common_name=COMMON_NAME,
            clock=clock,
        )
        self._app = WebhookApp(self._context_of, self._metrics, body_memory=config.body_memory)

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Tasks beside the reviews, by name."""
        found: dict[str, Coroutine[Any, Any, None]] = {
            "certificate": self._certificate.run(self._config.look_every),
            "nodes": self._follow_nodes(),
        }
        if self._config.http:
            found["status-page"] = StatusPage(self._config.http, self._pages()).run()
        return found

    async def run(self, stop: asyncio.Event, started: Callable[[str], None] | None) -> None:
        """Serve until `stop` is set and callers have left."""
        await serve_issued(
            self._app,
            self._certificate,
            self._listener,
            stop=stop,
            leave=self._leave,
            leave_after=self._config.leave_after,
            started=started,
        )

    def _leave(self) -> None:
        self._leaving = self._app.leaving = True
        structlog.get_logger().info("webhook.leaves", seconds=self._config.leave_after)

    async def _listener(self, tls: HeldTls) -> Listener:
        config = self._config
        if self._client_authority is not None:
            tls.require_client(self._client_authority)
        return Listener(
            address=config.address(),
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

    async def _follow_nodes(self) -> None:
        """Keep the size of the largest node; while the API cannot be read, the last size counts."""
        failures = 0
        while True:
            try:
                async for nodes in watch_nodes(self._config.kubeconfig):
                    failures = 0
                    self._drained = drained(nodes.values())
                    self._largest_node = max((node.epc for node in nodes.values()), default=0) // MIB
                    self._metrics.largest_node.set(self._largest_node)
            except (ClusterError, ConfigError) as error:
                if isinstance(error, ConfigError) and self._largest_node is None:
                    raise  # unusable credentials, from the start
                self._metrics.failures.labels("nodes").inc()
                structlog.get_logger().warning("webhook.nodes", outcome="waits", reason=str(error))
                await asyncio.sleep(WATCH_AGAIN[min(failures, len(WATCH_AGAIN) - 1)])
                failures += 1

    def _pages(self) -> dict[str, Handler]:
        return {"/healthz": alive, "/readyz": self._readyz, "/metrics": metrics_of(self._metrics.registry)}

    async def _readyz(self) -> Page:
        reason = "leaving: told to stop" if self._leaving else self._certificate.not_ready
        if not reason and self._drained:
            # The disruption budget lets unready pods be evicted: without that the last node could not be drained.
            reason = "every node is being drained, so no other replica can take over"
        return Page(503, f"{reason}\n".encode()) if reason else Page(200, b"ok\n")


def _read_authority(path: str | None) -> bytes | None:
    """The authority of clients, PEM; None if any client may ask."""
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_AUTHORITY)
    except OSError as error:
        raise ConfigError(f"cannot read the authority of clients {path}: {error.strerror}") from error


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):  # what ended it has been raised already
        await task
