"""EPC by dynamic resource allocation, as parts of the device plugin: devices in the API, claims at the kubelet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from confcom.devices.cdi_folder import CdiFolder
from confcom.devices.dra_devices import DraDevices
from confcom.devices.epc_units import EpcUnits
from confcom.devices.interface import ResourceClaims, ResourceSlices
from confcom.devices.sgx_node import SgxNode
from confcom.protocols.dra_objects import DRIVER, SharedDevice
from confcom.services.device_plugin_config import DevicePluginConfig
from confcom.services.device_plugin_events import Observer
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
    """A Part: the node's devices where the scheduler finds them."""

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
        settle = config.publish_interval
        self._slice = SliceReconciler(slices, config.node_name, self._offered(node), observe, settle=settle)

    @property
    def trouble(self) -> str:
        """That the API does not show them."""
        return self._slice.trouble

    async def run(self) -> None:
        """Watch, and repair."""
        await self._slice.run()

    def update(self, node: SgxNode) -> None:
        """Offer what there is now."""
        self._slice.update(self._offered(node))

    def _offered(self, node: SgxNode) -> tuple[SharedDevice, ...]:
        return self._devices.offered(self._units.pool(node), node)
