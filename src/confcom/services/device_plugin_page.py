"""The status page of the device plugin: whether it lives, whether the cluster can count on it, and its figures."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from confcom.services.device_plugin_events import Observer, PluginEvent
from confcom.services.device_plugin_metrics import DevicePluginMetrics
from confcom.services.device_plugin_parts import Part, troubles
from confcom.services.status_page import Handler, Page


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
