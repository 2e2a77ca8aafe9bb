"""EPC as an amount in the node's status, a part of the device plugin; held back while the kubelet would fail its pods.

A kubelet that knew the resource as devices goes on to take it for devices (`devices.kubelet_checkpoint`), and its
checkpoint says so. Of pods that have ended it learns at the next allocation, or when it is asked who holds what: so it
is asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from confcom.devices.epc_node_status import EpcAmount
from confcom.devices.epc_units import EpcUnits
from confcom.devices.interface import NodeStatusPublisher
from confcom.devices.kubelet_checkpoint import remembered
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError
from confcom.protocols.kubelet_calls import Empty
from confcom.protocols.kubelet_podresources import LIST
from confcom.services.device_plugin_config import DevicePluginConfig
from confcom.services.device_plugin_events import Observer, PluginEvent
from confcom.services.device_plugin_grpc import call
from confcom.services.epc_reconciler import EpcReconciler


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
        self._node = node
        self._config = config
        self._observe = observe
        self._withdrawn = withdrawn
        self._asked = False
        self._kept = ""
        self._reconciler = EpcReconciler(publisher, self._amount(), observe, settle=config.publish_interval)

    @property
    def trouble(self) -> str:
        """That the API does not show the amount, or that there can be none yet."""
        return self._reconciler.trouble or self._kept

    async def run(self) -> None:
        """Watch, and repair."""
        watches = [self._reconciler.run()] if self._withdrawn else [self._reconciler.run(), self._watch_kubelet()]
        await asyncio.gather(*watches)

    def update(self, node: SgxNode) -> None:
        """Want another amount."""
        self._node = node
        self._reconciler.update(self._amount())

    def _amount(self) -> EpcAmount:
        amount = EpcAmount.of(self._units.name, self._units.pool(self._node), healthy=not self._node.obstacles)
        held_back = self._withdrawn or self._kept or not self._asked
        return replace(amount, units=None) if held_back else amount

    async def _watch_kubelet(self) -> None:
        while True:
            kept = await self._why_kept()
            if kept != self._kept:
                self._observe(PluginEvent("epc.held_back", self._units.name, {"reason": kept}, trouble=bool(kept)))
            self._asked, self._kept = True, kept
            self._reconciler.update(self._amount())
            await asyncio.sleep(self._config.health_interval)

    async def _why_kept(self) -> str:
        """Why pods that got the amount now would be failed by the kubelet; empty when they would not."""
        resource, config = self._units.name, self._config
        found = await asyncio.to_thread(remembered, Path(config.plugin_dir), resource)
        if found.holders:
            try:
                held = await call(Path(config.pod_resources_socket), LIST, Empty(), timeout=config.register_timeout)
            except ConfcomError as error:
                return f"the kubelet does not say who holds {resource} as devices: {error.message}"
            # The kubelet lists a container once per device.
            holders = {(one.namespace, one.pod, one.container) for one in held.held if one.resource == resource}
            if holders:
                return f"{len(holders)} containers hold {resource} as devices of an earlier plugin, until they end"
        if found.registered:
            return f"the kubelet keeps {resource} as devices of an earlier plugin, for five minutes after its end"
        return ""
