"""EPC as an amount in the node's status, a part of the device plugin; held back while the kubelet would fail its pods.

A kubelet that knew the resource as devices goes on to take it for devices (`devices/node_status.py`), and its
checkpoint says so. It notices that pods have ended at the next allocation, or when it is asked which container holds
what: so it is asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from confcom.devices.node_status import EpcAmount, remembered
from confcom.devices.resources import EpcUnits
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError
from confcom.protocols.epc import NodeStatus
from confcom.services.device_plugin.grpc import held_devices
from confcom.services.device_plugin.plugin_config import DevicePluginConfig
from confcom.services.device_plugin.plugin_metrics import Observer, PluginEvent
from confcom.services.runtime.reconciler import Reconciler

if TYPE_CHECKING:
    from confcom.cluster.nodes import KubeNode


class EpcInNodeStatus:
    """A Part: the amount of EPC in the node's status, or with `withdrawn` that there is none, and the labels.

    Every state of the node that the API shows is compared with what is wanted, and patched where it differs.
    """

    def __init__(
        self,
        units: EpcUnits,
        node: SgxNode,
        publisher: KubeNode,
        config: DevicePluginConfig,
        observe: Observer,
        *,
        withdrawn: bool = False,
    ) -> None:
        self.name = "node status"
        self._units = units
        self._node = node
        self._publisher = publisher
        self._config = config
        self._observe = observe
        self._withdrawn = withdrawn
        self._asked = False
        self._held_back = ""
        self._wanted = self._amount()
        self._reconciler = Reconciler(publisher.watch, self._repair, self._failed, settle=config.publish_interval)

    @property
    def unhealthy_reason(self) -> str:
        """That the API does not show the amount, or that there can be none yet."""
        return self._reconciler.unhealthy_reason or self._held_back

    async def run(self) -> None:
        """Watch, and repair."""
        watches = [self._reconciler.run()] if self._withdrawn else [self._reconciler.run(), self._watch_kubelet()]
        await asyncio.gather(*watches)

    def update(self, node: SgxNode) -> None:
        """Publish the amount that there is now."""
        self._node = node
        self._update()

    def _update(self) -> None:
        if (amount := self._amount()) != self._wanted:
            self._wanted = amount
            self._reconciler.wake()

    def _amount(self) -> EpcAmount:
        amount = EpcAmount.of(self._units.name, self._units.pool(self._node), healthy=not self._node.obstacles)
        held_back = self._withdrawn or self._held_back or not self._asked
        return replace(amount, units=None) if held_back else amount

    async def _repair(self, status: NodeStatus) -> bool:
        wanted = self._wanted
        if (patch := wanted.patch_for(status)) is None:
            return False
        await self._publisher.patch(patch)
        fields = {"outcome": "published", "units": wanted.units, "true_mib": wanted.true_mib}
        self._observe(PluginEvent("epc.published", wanted.resource, fields))
        return True

    def _failed(self, reason: str) -> None:
        fields = {"outcome": "failed", "reason": reason}
        self._observe(PluginEvent("epc.published", self._units.name, fields, warning=True))

    async def _watch_kubelet(self) -> None:
        while True:
            reason = await self._why_held_back()
            if reason != self._held_back:
                self._observe(PluginEvent("epc.held_back", self._units.name, {"reason": reason}, warning=bool(reason)))
            self._asked, self._held_back = True, reason
            self._update()
            await asyncio.sleep(self._config.health_interval)

    async def _why_held_back(self) -> str:
        """Why the kubelet would fail pods that got the amount now; empty when it would not."""
        resource = self._units.name
        found = await asyncio.to_thread(remembered, Path(self._config.plugin_dir), resource)
        if found.holders:
            try:
                (held,) = await held_devices(self._config, resource)
            except ConfcomError as error:
                return f"the kubelet does not say who holds {resource} as devices: {error.message}"
            if held:
                return f"{len(held)} containers hold {resource} as devices of an earlier plugin, until they end"
        if found.registered:
            return f"the kubelet keeps {resource} as devices of an earlier plugin, for five minutes after its end"
        return ""
