"""EPC as an amount in the node's status, a part of the device plugin; held back while the kubelet would fail its pods.

A kubelet that knew the resource as devices goes on to take it for devices (`devices.kubelet_checkpoint`), and its
checkpoint says so. Of pods that have ended it learns at the next allocation, or when it is asked who holds what: so it
is asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from confcom.cluster.nodes import KubeNode, NodeStatus
from confcom.cluster.resource_slices import KubeResourceClaims, KubeResourceSlices
from confcom.devices.interface import NodeStatusPublisher
from confcom.devices.node_status import EpcAmount, remembered
from confcom.devices.resources import EpcUnits
from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError
from confcom.protocols.dra_objects import DRIVER
from confcom.protocols.kubelet import LIST, Empty
from confcom.services.device_plugin.grpc import call
from confcom.services.device_plugin.plugin_config import DevicePluginConfig
from confcom.services.device_plugin.plugin_metrics import Observer, PluginEvent
from confcom.services.runtime.reconciler import Reconciler

# --- Keeps EPC in the node's status at what it should be, whoever resets it -------------------------------------------


class EpcReconciler:
    """Compares every state of the node that the API shows with the wanted amount, and patches what differs."""

    def __init__(self, publisher: NodeStatusPublisher, amount: EpcAmount, observe: Observer, *, settle: float) -> None:
        self._publisher = publisher
        self._amount = amount
        self._observe = observe
        self._reconciler = Reconciler(publisher.watch, self._repair, self._failed, settle=settle)

    @property
    def trouble(self) -> str:
        """Why the amount may be missing from the node's status, as a clause; empty when it is there."""
        return self._reconciler.trouble

    def update(self, amount: EpcAmount) -> None:
        """Want another amount from now on."""
        if amount != self._amount:
            self._amount = amount
            self._reconciler.wake()

    async def run(self) -> None:
        """For ever; failures are told and tried again."""
        await self._reconciler.run()

    async def _repair(self, status: NodeStatus) -> bool:
        wanted = self._amount
        if (patch := wanted.patch_for(status)) is None:
            return False
        await self._publisher.patch(patch)
        fields = {"outcome": "published", "units": wanted.units, "true_mib": wanted.true_mib}
        self._observe(PluginEvent("epc.published", wanted.resource, fields))
        return True

    def _failed(self, reason: str) -> None:
        fields = {"outcome": "failed", "reason": reason}
        self._observe(PluginEvent("epc.published", self._amount.resource, fields, trouble=True))


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


# --- The Kubernetes API for one node's device plugin (extra `kube`): a NodeCluster ------------------------------------


@dataclass(frozen=True, slots=True)
class KubeNodeCluster:
    """`kubeconfig` None means in-cluster credentials, else $KUBECONFIG or the user's file."""

    node: str
    kubeconfig: str | None = None

    def status(self) -> KubeNode:
        """To the Node object's status."""
        return KubeNode(self.node, kubeconfig=self.kubeconfig)

    def slices(self) -> KubeResourceSlices:
        """To the node's ResourceSlices."""
        return KubeResourceSlices(self.node, DRIVER, kubeconfig=self.kubeconfig)

    def claims(self) -> KubeResourceClaims:
        """To claims."""
        return KubeResourceClaims(kubeconfig=self.kubeconfig)
