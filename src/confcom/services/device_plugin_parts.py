"""What a device plugin consists of: parts that keep one thing each known to the cluster, and tell what ails it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from confcom.devices.epc_node_status import EpcAmount
from confcom.devices.epc_units import EpcUnits
from confcom.devices.interface import DeviceResource, NodeStatusPublisher, ResourceClaims, ResourceSlices
from confcom.devices.kubelet_checkpoint import why_kept_as_devices
from confcom.devices.sgx_node import SgxNode
from confcom.services.device_plugin_config import DevicePluginConfig
from confcom.services.device_plugin_events import Observer, PluginEvent
from confcom.services.device_plugin_registration import SocketRegistration
from confcom.services.device_plugin_server import Guard, ResourceServer
from confcom.services.epc_reconciler import EpcReconciler
from confcom.services.kubelet_registration import Registration, RegistryRegistration


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


class EpcInNodeStatus:
    """A Part: the amount of EPC in the node's status, or with `withdrawn` that there is none, and the labels."""

    def __init__(
        self,
        units: EpcUnits,
        node: SgxNode,
        publisher: NodeStatusPublisher,
        config: DevicePluginConfig,
        observe: Observer,
        *,
        withdrawn: bool = False,
    ) -> None:
        self.name = "node status"
        self._units = units
        self._observe = observe
        self._plugins = Path(config.plugin_dir)
        self._withdrawn = withdrawn
        self._kept = ""
        amount = self._amount(node)
        self._reconciler = EpcReconciler(publisher, amount, observe, settle=config.publish_interval)

    @property
    def trouble(self) -> str:
        """That the API does not show the amount, or that there can be none yet."""
        return self._reconciler.trouble or self._kept

    async def run(self) -> None:
        """Watch, and repair."""
        await self._reconciler.run()

    def update(self, node: SgxNode) -> None:
        """Want another amount."""
        self._reconciler.update(self._amount(node))

    def _amount(self, node: SgxNode) -> EpcAmount:
        amount = EpcAmount.of(self._units.name, self._units.pool(node), healthy=not node.obstacles)
        return replace(amount, units=None) if self._withdrawn or self._held_back() else amount

    def _held_back(self) -> bool:
        """Whether pods that got the amount now would be failed by the kubelet."""
        kept = why_kept_as_devices(self._plugins, self._units.name)
        if kept != self._kept:
            self._observe(PluginEvent("epc.held_back", self._units.name, {"reason": kept}, trouble=bool(kept)))
            self._kept = kept
        return bool(kept)


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
