"""What a device plugin consists of: parts that keep one thing each known to the cluster, and tell what ails it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from confcom.devices.interface import DeviceResource, NodeStatusPublisher, ResourceClaims, ResourceSlices
from confcom.devices.sgx_node import SgxNode
from confcom.services.device_plugin.plugin_config import DevicePluginConfig
from confcom.services.device_plugin.plugin_metrics import DevicePluginMetrics, Observer, PluginEvent
from confcom.services.device_plugin.registration import Registration, RegistryRegistration, SocketRegistration
from confcom.services.device_plugin.resource_server import Guard, ResourceServer
from confcom.services.runtime.status_page import Handler, Page


class NodeCluster(Protocol):
    """The Kubernetes API as far as one node's plugin needs it; each call makes a way of its own."""

    def status(self) -> NodeStatusPublisher:
        """To the Node object's status."""

    def slices(self) -> ResourceSlices:
        """To the node's ResourceSlices."""

    def claims(self) -> ResourceClaims:
        """To claims."""


class Part(Protocol):
    """One thing that the plugin publishes."""

    @property
    def name(self) -> str:
        """What it is, for the status page."""

    @property
    def trouble(self) -> str:
        """Why nobody can count on it now, as a clause; empty when all is well."""

    async def run(self) -> None:
        """For ever."""

    def update(self, node: SgxNode) -> None:
        """Take what there is of SGX now."""


class KubeletResource:
    """A Part: an extended resource that the kubelet hands out. `ready` is called whenever the kubelet has taken it."""

    def __init__(
        self,
        resource: DeviceResource,
        node: SgxNode,
        config: DevicePluginConfig,
        observe: Observer,
        *,
        ready: Callable[[], None],
        guard: Guard | None = None,
    ) -> None:
        self.name = resource.name
        self._resource = resource
        self._server = ResourceServer(resource, resource.inventory(node), observe, guard)
        server = self._server
        self._registration: Registration = (
            RegistryRegistration(server, server.info, config, observe, ready)
            if config.registration == "registry"
            else SocketRegistration(server, server.request, config, observe, ready)
        )

    @property
    def trouble(self) -> str:
        """That the kubelet does not know it, or that its device is not there."""
        return self._registration.trouble or self._server.trouble

    async def run(self) -> None:
        """Register, and again."""
        await self._registration.run()

    def update(self, node: SgxNode) -> None:
        """Tell the kubelet of what changed."""
        self._server.update(self._resource.inventory(node))


class Announcer:
    """Calls `started` once, when every one of its callbacks has been called."""

    def __init__(self, started: Callable[[], None]) -> None:
        self._waiting: set[str] = set()
        self._started = started

    def wait_for(self, name: str) -> Callable[[], None]:
        """A callback for one more thing; to be taken before any is called."""
        self._waiting.add(name)

        def ready() -> None:
            if name in self._waiting:
                self._waiting.remove(name)
                if not self._waiting:
                    self._started()

        return ready


def troubles(parts: Collection[Part]) -> dict[str, str]:
    """What is wrong, by part; empty when all is well."""
    return {part.name: part.trouble for part in parts if part.trouble}


# --- The status page of the device plugin: whether it lives, whether the cluster can count on it, and its ---


class PluginPages:
    """/healthz, /readyz and /metrics. `absent` says why there are no parts yet; `parts` are what readiness is about.

    `waits`: it could serve, and will as soon as its predecessor has ended. That is ready too.
    """

    def __init__(self, observe: Observer) -> None:
        self.absent = "the plugin has not looked at the node yet"
        self.parts: Sequence[Part] = ()
        self.waits = False
        self._registry = CollectorRegistry()
        self._metrics = DevicePluginMetrics(self._registry)
        self._observe = observe

    def observe(self, event: PluginEvent) -> None:
        """Count an event, and pass it on."""
        self._metrics.observe(event)
        self._observe(event)

    def table(self) -> dict[str, Handler]:
        """Path to handler."""
        return {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._show_metrics}

    async def _healthz(self) -> Page:
        return Page(200, b"ok\n")  # that this is sent shows that the loop turns

    async def _readyz(self) -> Page:
        wrong = {} if self.waits else troubles(self.parts) if self.parts else {"node": self.absent}
        reason = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        body = {
            "ready": not wrong,
            "reason": "waits until its predecessor has ended" if self.waits else reason,
            "parts": {part.name: part.trouble or "ready" for part in self.parts},
        }
        content = msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"
        return Page(503 if wrong else 200, content, "application/json")

    async def _show_metrics(self) -> Page:
        return Page(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)
