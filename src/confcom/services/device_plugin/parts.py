"""Parts of the device plugin, each of which keeps one thing known to the cluster, and the status page about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from confcom.devices.sgx_node import SgxNode
from confcom.services.device_plugin.plugin_metrics import DevicePluginMetrics, Observer, PluginEvent
from confcom.services.runtime.http_server import Page
from confcom.services.runtime.status_page import Handler, alive, component_registry, metrics_of


class Part(Protocol):
    """One thing that the plugin publishes."""

    @property
    def name(self) -> str:
        """What it is, for the status page."""

    @property
    def unhealthy_reason(self) -> str:
        """Why the cluster cannot rely on it now, as a clause; empty when all is well."""

    async def run(self) -> None:
        """Publish until cancelled."""

    def update(self, node: SgxNode) -> None:
        """Publish what there is of SGX now."""


class Announcer:
    """Calls `started` once, when every one of its callbacks has been called."""

    def __init__(self, started: Callable[[], None]) -> None:
        self._waiting: set[str] = set()
        self._started = started

    def wait_for(self, name: str) -> Callable[[], None]:
        """A callback for one more thing; take all of them before the first is called."""
        self._waiting.add(name)

        def ready() -> None:
            if name in self._waiting:
                self._waiting.remove(name)
                if not self._waiting:
                    self._started()

        return ready


class PluginPages:
    """/healthz, /readyz and /metrics. `absent` says why there are no parts yet; `parts` are what readiness is about.

    `waits`: the plugin could serve, and will as soon as its predecessor has ended. That is ready too.
    """

    def __init__(self, observe: Observer) -> None:
        self.absent = "the plugin has not looked at the node yet"
        self.parts: Sequence[Part] = ()
        self.waits = False
        self._registry = component_registry("device-plugin")
        self._metrics = DevicePluginMetrics(self._registry)
        self._observe = observe

    def observe(self, event: PluginEvent) -> None:
        """Count an event, and pass it on."""
        self._metrics.observe(event)
        self._observe(event)

    def table(self) -> dict[str, Handler]:
        """Path to handler."""
        return {"/healthz": alive, "/readyz": self._readyz, "/metrics": metrics_of(self._registry)}

    async def _readyz(self) -> Page:
        wrong = {} if self.parts or self.waits else {"node": self.absent}
        if not self.waits:
            wrong |= {part.name: part.unhealthy_reason for part in self.parts if part.unhealthy_reason}
        reason = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        body = {
            "ready": not wrong,
            "reason": "waits until its predecessor has ended" if self.waits else reason,
            "parts": {part.name: part.unhealthy_reason or "ready" for part in self.parts},
        }
        content = msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"
        return Page(503 if wrong else 200, content, "application/json")
