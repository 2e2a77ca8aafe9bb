"""EPC by dynamic resource allocation, as parts of the device plugin: devices in the API, claims at the kubelet."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from confcom.devices.cdi_folder import CdiFolder
from confcom.devices.dra_devices import DraDevices
from confcom.devices.epc_pool import numa_node_of
from confcom.devices.epc_units import EpcUnits
from confcom.devices.interface import ResourceClaims, ResourceSlices
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError
from confcom.protocols.dra_objects import DRIVER, SharedDevice
from confcom.protocols.kubelet_calls import Empty
from confcom.protocols.kubelet_podresources import LIST
from confcom.services.device_plugin_config import DevicePluginConfig
from confcom.services.device_plugin_events import Observer, PluginEvent
from confcom.services.device_plugin_grpc import call
from confcom.services.dra_claims import CDI_PREFIX, ClaimServer
from confcom.services.dra_slices import SliceReconciler
from confcom.services.kubelet_registration import RegistryRegistration


class ClaimsAtKubelet:
    """A Part: the driver as the kubelet calls it. `ready` is called whenever the kubelet has taken it."""

    def __init__(
        self,
        devices: DraDevices,
        names: tuple[str, ...],
        node: SgxNode,
        claims: ResourceClaims,
        config: DevicePluginConfig,
        observe: Observer,
        *,
        ready: Callable[[], None],
    ) -> None:
        self.name = DRIVER
        self._node = node
        folder = CdiFolder(Path(config.cdi_dir), CDI_PREFIX)
        self._server = ClaimServer(config.node_name, devices, names, node, claims, folder, observe)
        self._registration = RegistryRegistration(self._server, self._server.info, config, observe, ready)

    @property
    def trouble(self) -> str:
        """That the kubelet does not know the driver, or that the SGX driver is not there."""
        return self._registration.trouble or "; ".join(self._node.obstacles)

    async def run(self) -> None:
        """Serve the kubelet."""
        self._server.tell_known()
        await self._registration.run()

    def update(self, node: SgxNode) -> None:
        """Tell the kubelet of the devices' health."""
        self._node = node
        self._server.update(node)


class DevicesInApi:
    """A Part: the node's devices where the scheduler finds them, less what pods of another publisher still hold.

    The kubelet says which devices of 1 MiB they hold. It does not say how much EPC in the node's status they have: as
    long as there are such pods, known by their enclave device, no EPC is offered. Nor is any before it answers.
    """

    def __init__(
        self,
        devices: DraDevices,
        units: EpcUnits,
        node: SgxNode,
        slices: ResourceSlices,
        config: DevicePluginConfig,
        observe: Observer,
    ) -> None:
        self.name = "resource slice"
        self._devices = devices
        self._units = units
        self._node = node
        self._config = config
        self._observe = observe
        self._held: Mapping[int | None, int] = {}
        self._kept = "the kubelet has not said yet who holds EPC"
        settle = config.publish_interval
        self._slice = SliceReconciler(slices, config.node_name, self._offered(), observe, settle=settle)

    @property
    def trouble(self) -> str:
        """That the API does not show them, or that none can be offered yet."""
        return self._slice.trouble or self._kept

    async def run(self) -> None:
        """Watch, and repair."""
        await asyncio.gather(self._slice.run(), self._watch_kubelet())

    def update(self, node: SgxNode) -> None:
        """Offer what there is now."""
        self._node = node
        self._slice.update(self._offered())

    def _offered(self) -> tuple[SharedDevice, ...]:
        pool = self._units.pool(self._node)
        held = {one.numa_node: one.units for one in pool.sections} if self._kept else self._held
        return self._devices.offered(pool.without(held), self._node)

    async def _watch_kubelet(self) -> None:
        """Until nothing is held any more: new pods cannot get EPC but by claims."""
        while self._held or self._kept:
            before = self._held, self._kept
            await self._look()
            if (self._held, self._kept) != before:
                fields = {"reason": self._kept, "units": sum(self._held.values())}
                self._observe(PluginEvent("epc.held_back", DRIVER, fields, trouble=bool(self._kept)))
                self._slice.update(self._offered())
            await asyncio.sleep(self._config.health_interval)

    async def _look(self) -> None:
        config = self._config
        try:
            found = await call(Path(config.pod_resources_socket), LIST, Empty(), timeout=config.register_timeout)
        except ConfcomError as error:
            self._kept = f"the kubelet does not say who holds EPC: {error.message}"
            return
        holders: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
        for one in found.held:
            holders[one.resource].add((one.namespace, one.pod, one.container))
        others = len(holders[config.enclave_resource] - holders[config.resource])
        units = [unit for one in found.held if one.resource == config.resource for unit in one.ids]
        self._held = Counter(map(numa_node_of, units))
        self._kept = f"{others} containers hold EPC of the node's status, until they end" if others else ""
