"""Publishes EPC as an amount in the node's status: computes it, and corrects the status when it differs.

The kubelet makes `allocatable` equal to `capacity` for resources that it does not know itself, so both say what may be
requested: reserve subtracted, overcommit applied. The true size is a label.

A node that published EPC as devices before cannot offer it as an amount at once: the kubelet keeps the resource for
five minutes after its plugin has gone, longer while a pod holds devices, and fails pods that request it ("no healthy
devices present"). Its checkpoint shows that, and nothing else does (Kubernetes 1.36, cm/devicemanager). The
kubelet notices that pods have ended at the next allocation, or when asked which container holds what: so it is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from confcom.devices.resources import EpcUnits
from confcom.devices.sgx_node import EpcPool, SgxNode
from confcom.errors import ConfcomError, FormatError
from confcom.input_file import read_bounded
from confcom.protocols.epc import BOOT_ANNOTATION, OVERCOMMIT_LABEL, TRUE_SIZE_LABEL, NodeStatus, parse_quantity
from confcom.services.device_plugin.grpc import held_devices
from confcom.services.device_plugin.plugin_config import DevicePluginConfig
from confcom.services.device_plugin.plugin_metrics import Observer, PluginEvent
from confcom.services.runtime.process import Reconciler

if TYPE_CHECKING:
    from confcom.cluster.nodes import KubeNode


@dataclass(frozen=True, slots=True)
class EpcAmount:
    """What the node's status should say of one resource. `units` is 0 while the driver is away.

    `units` None: nothing may be requested this way, because EPC is published otherwise.
    """

    resource: str
    units: int | None
    true_mib: int
    overcommit: float = 1.0

    @classmethod
    def of(cls, resource: str, pool: EpcPool, *, healthy: bool = True) -> EpcAmount:
        """The amount of a pool."""
        return cls(resource, pool.units if healthy else 0, pool.true_mib, pool.overcommit)

    @property
    def labels(self) -> Mapping[str, str]:
        """The true size beside the amount."""
        return {TRUE_SIZE_LABEL: str(self.true_mib), OVERCOMMIT_LABEL: f"{self.overcommit:g}"}

    def patch_for(self, status: NodeStatus) -> Mapping[str, object] | None:
        """The merge patch that makes a node's status right; None if it is."""
        amounts = self._withdrawal(status) if self.units is None else self._amounts(status, self.units)
        labels = {name: value for name, value in self.labels.items() if status.labels.get(name) != value}
        metadata: dict[str, object] = {"labels": labels} if labels else {}
        if status.boot_id and status.annotations.get(BOOT_ANNOTATION) != status.boot_id:
            metadata["annotations"] = {BOOT_ANNOTATION: status.boot_id}
        patch: dict[str, object] = {"metadata": metadata} if metadata else {}
        if amounts:
            patch["status"] = amounts
        return patch or None

    def _amounts(self, status: NodeStatus, units: int) -> Mapping[str, object]:
        return {
            part: {self.resource: str(units)}
            for part, found in (("capacity", status.capacity), ("allocatable", status.allocatable))
            if not _says(found.get(self.resource), units)
        }

    def _withdrawal(self, status: NodeStatus) -> Mapping[str, object]:
        # Capacity alone can be what the kubelet remembers of an earlier plugin: pods cannot request that.
        offered = status.allocatable.get(self.resource)
        if offered is None or _says(offered, 0):
            return {}
        return {part: {self.resource: None} for part in ("capacity", "allocatable")}


def _says(text: str | None, units: int) -> bool:
    if text is None:
        return False
    try:
        return parse_quantity(text) == units
    except FormatError:
        return False


CHECKPOINT = "kubelet_internal_checkpoint"
"""File name in the kubelet's directory of device plugins."""
MAX_CHECKPOINT = 64 << 20
"""Bytes; a quarter of a million devices, all allocated, make about 4 MB."""


class _Entry(msgspec.Struct):
    ResourceName: str


class _Data(msgspec.Struct):
    PodDeviceEntries: list[_Entry] | None = None
    RegisteredDevices: dict[str, msgspec.Raw] | None = None


class _Checkpoint(msgspec.Struct):
    Data: _Data


_CHECKPOINT = msgspec.json.Decoder(_Checkpoint)


@dataclass(frozen=True, slots=True)
class Remembered:
    """`registered`: as one of a device plugin; `holders`: containers that hold devices of it, or did.

    Holders that have ended stay in the file until the next allocation of any device.
    """

    registered: bool = False
    holders: int = 0


def remembered(directory: Path, resource: str) -> Remembered:
    """What the kubelet's checkpoint says of a resource; nothing where it cannot be read or is written otherwise."""
    try:
        found = _CHECKPOINT.decode(read_bounded(directory / CHECKPOINT, MAX_CHECKPOINT, patience=0)).Data
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Remembered()
    holders = sum(entry.ResourceName == resource for entry in found.PodDeviceEntries or ())
    return Remembered(resource in (found.RegisteredDevices or {}), holders)


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
