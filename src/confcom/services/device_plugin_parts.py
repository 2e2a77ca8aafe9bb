"""What a device plugin consists of: parts that keep one thing each known to the cluster, and tell what ails it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from confcom.devices.interface import DeviceResource, NodeStatusPublisher, ResourceClaims, ResourceSlices
from confcom.devices.sgx_node import SgxNode
from confcom.services.device_plugin_config import DevicePluginConfig
from confcom.services.device_plugin_events import Observer
from confcom.services.device_plugin_registration import SocketRegistration
from confcom.services.device_plugin_server import Guard, ResourceServer
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
