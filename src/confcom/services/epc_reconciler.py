"""Keeps EPC in the node's status at what it should be, whoever resets it."""

from __future__ import annotations

from confcom.cluster.node_values import NodeStatus
from confcom.devices.epc_node_status import EpcAmount
from confcom.devices.interface import NodeStatusPublisher
from confcom.services.device_plugin_events import Observer, PluginEvent
from confcom.services.reconciler import Reconciler


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
