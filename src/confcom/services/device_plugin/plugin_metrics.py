"""Events of the device plugin, and the log and the metrics that observe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog
from prometheus_client import CollectorRegistry

from confcom.services.runtime.status_page import Metrics


@dataclass(frozen=True, slots=True)
class PluginEvent:
    """One thing that happened to a resource; `name` is the log's event, `warning` its level."""

    name: str
    resource: str
    fields: Mapping[str, object] = field(default_factory=dict)
    warning: bool = False


Observer: TypeAlias = Callable[[PluginEvent], None]


def log_event(event: PluginEvent) -> None:
    """Write the event to the log."""
    logger = structlog.get_logger()
    write = logger.warning if event.warning else logger.info
    write(event.name, resource=event.resource, **event.fields)


PREFIX = "confcom_device_plugin"
_CLAIM_OUTCOMES = {"prepare": ("prepared", "failed"), "unprepare": ("unprepared", "unknown", "failed")}


class DevicePluginMetrics(Metrics):
    """Everything that the plugin counts. `docs/reference/device-plugin.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, PREFIX)
        gauge, counter = self.gauge, self.counter
        self._true = gauge("epc_mib", "MiB of EPC that the node has.", "numa_node")
        self._requestable = gauge("epc_requestable_mib", "MiB of EPC that may be requested: less the reserve, times "
                                  "the overcommit ratio.")  # fmt: skip
        self._reserve = gauge("epc_reserve_mib", "MiB of EPC held back.")
        self._overcommit = gauge("epc_overcommit_ratio", "What may be requested by what is there beside the reserve.")
        self._publisher = gauge("publisher", "1 for the way in which EPC is published.", "publisher")
        self._healthy = gauge("healthy", "1 while the resource's devices are there, else 0.", "resource")
        self._devices = gauge("devices", "Devices last told to the kubelet.", "resource")
        self._bytes = gauge("list_bytes", "Bytes of the last list told to the kubelet; it takes 4194304.", "resource")
        self._registrations = counter("registrations", "Registrations, by outcome.", "resource", "outcome")
        self._losses = counter("kubelet_losses", "Times that the kubelet or its stream was lost.", "resource")
        self._grants = counter("grants", "Containers that were given devices.", "resource")
        self._granted = counter("granted_units", "Devices given, summed up over containers.", "resource")
        self._publications = counter(
            "publications", "Changes of the node's status and of its slice, by outcome.", "outcome"
        )
        self._claims = gauge("claims", "Claims that are prepared.")
        self._calls = counter(
            "claim_calls", "Claims that the kubelet asked to be prepared or let go.", "call", "outcome"
        )
        for outcome in ("published", "failed"):
            self._publications.labels(outcome)
        for call, outcomes in _CLAIM_OUTCOMES.items():
            for outcome in outcomes:
                self._calls.labels(call, outcome)
        self._by_event: Mapping[str, Callable[[str, Mapping[str, Any]], None]] = {
            "epc.plan": self._plan,
            "epc.published": lambda _, fields: self._publications.labels(fields["outcome"]).inc(),
            "devices.sent": self._sent,
            "devices.health": lambda resource, fields: self._healthy.labels(resource).set(bool(fields["healthy"])),
            "devices.granted": self._grant,
            "kubelet.registered": self._registered,
            "claims.known": lambda _, fields: self._claims.set(fields["prepared"]),
            "claim.prepared": lambda _, fields: self._claim("prepare", fields),
            "claim.unprepared": lambda _, fields: self._claim("unprepare", fields),
            "kubelet.lost": lambda resource, _: self._losses.labels(resource).inc(),
        }

    def observe(self, event: PluginEvent) -> None:
        """Count an event, if a metric counts events of its name."""
        count = self._by_event.get(event.name)
        if count is not None:
            count(event.resource, event.fields)

    def _plan(self, resource: str, fields: Mapping[str, Any]) -> None:
        del resource
        for node, mib in fields["numa_nodes"].items():
            self._true.labels(node).set(mib)
        self._requestable.set(fields["units"])
        self._reserve.set(fields["reserve_mib"])
        self._overcommit.set(fields["overcommit"])
        self._publisher.labels(fields["publisher"]).set(1)

    def _sent(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._devices.labels(resource).set(fields["devices"])
        self._bytes.labels(resource).set(fields["bytes"])
        self._healthy.labels(resource).set(fields["healthy"] == fields["devices"])

    def _registered(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._registrations.labels(resource, fields["outcome"]).inc()
        # Beforehand, so that the first is an increase.
        self._losses.labels(resource)
        for outcome in ("registered", "failed"):
            self._registrations.labels(resource, outcome)

    def _claim(self, call: str, fields: Mapping[str, Any]) -> None:
        self._claims.set(fields["prepared"])
        self._calls.labels(call, fields["outcome"]).inc()

    def _grant(self, resource: str, fields: Mapping[str, Any]) -> None:
        self._grants.labels(resource).inc()
        self._granted.labels(resource).inc(fields["units"])
