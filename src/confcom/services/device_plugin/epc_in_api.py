"""Publishes EPC in the Kubernetes API, as an amount in the node's status or as devices in its ResourceSlice.

The kubelet makes `allocatable` equal to `capacity` for resources that it does not know itself, so both say what may be
requested: reserve subtracted, overcommit applied. The true size is a label.

A node that published EPC as devices before cannot offer it as an amount at once: the kubelet keeps the resource for
five minutes after its plugin has gone, longer while a pod holds devices, and fails pods that request it ("no healthy
devices present"). Its checkpoint shows that, and nothing else does (Kubernetes 1.36, cm/devicemanager). The
kubelet notices that pods have ended at the next allocation, or when asked which container holds what: so it is asked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from confcom.devices.resources import DraDevices, EpcUnits
from confcom.devices.sgx_node import EpcPool, SgxNode, is_unit, numa_node_of
from confcom.errors import ConfcomError, FormatError, PlatformUnavailable, check_want
from confcom.input_file import read_bounded
from confcom.protocols.epc import (
    BOOT_ANNOTATION,
    DRA_DRIVER,
    OVERCOMMIT_LABEL,
    TRUE_SIZE_LABEL,
    NodeStatus,
    SharedDevice,
    lost_sharing,
    parse_quantity,
    resource_slice,
    slice_devices,
    slice_generation,
    slice_name,
)
from confcom.services.device_plugin.grpc import held_devices
from confcom.services.device_plugin.kubelet_plugin import Observer, PluginEvent
from confcom.services.runtime.process import Reconciler

if TYPE_CHECKING:
    from confcom.cluster.nodes import KubeNode, KubeResourceSlices
    from confcom.services.device_plugin.plugin import DevicePluginConfig

State = TypeVar("State")
Offer = TypeVar("Offer")


class InApi(Generic[State, Offer]):
    """A Part: an object of the API. Every state of it that the API shows is repaired where it is not as wanted.

    `_held_back` says why EPC cannot be offered yet, as a clause.
    """

    _held_back: str

    def __init__(
        self,
        name: str,
        resource: str,
        units: EpcUnits,
        node: SgxNode,
        watch: Callable[[], AsyncGenerator[State, None]],
        config: DevicePluginConfig,
        observe: Observer,
    ) -> None:
        self.name = name
        self._resource = resource
        self._units = units
        self._node = node
        self._config = config
        self._observe = observe
        self._wanted = self._offer()
        self._reconciler = Reconciler(watch, self._repair, self._failed, settle=config.publish_interval)

    @property
    def unhealthy_reason(self) -> str:
        """That the API does not show what is wanted, or that EPC cannot be offered yet."""
        return self._reconciler.unhealthy_reason or self._held_back

    async def run(self) -> None:
        """Watch, and repair."""
        await asyncio.gather(self._reconciler.run(), self._watch_kubelet())

    def update(self, node: SgxNode) -> None:
        """Offer what there is now."""
        self._node = node
        self._update()

    def _update(self) -> None:
        if (offer := self._offer()) != self._wanted:
            self._wanted = offer
            self._reconciler.wake()

    def _offer(self) -> Offer:
        """What the object should say now."""
        raise NotImplementedError

    async def _repair(self, state: State) -> bool:
        """Make the object say it; whether something was written."""
        raise NotImplementedError

    async def _watch_kubelet(self) -> None:
        """Find out whether EPC can be offered, for as long as that may change."""
        raise NotImplementedError

    def _failed(self, reason: str) -> None:
        self._report("epc.published", warning=True, outcome="failed", reason=reason)

    def _report(self, name: str, *, warning: bool = False, **fields: object) -> None:
        self._observe(PluginEvent(name, self._resource, fields, warning))


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
    """What the kubelet's checkpoint says of a resource; nothing where it cannot be read or is written otherwise.

    `PlatformUnavailable` for want of descriptors.
    """
    try:
        found = _CHECKPOINT.decode(read_bounded(directory / CHECKPOINT, MAX_CHECKPOINT, patience=0)).Data
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return Remembered()
    except OSError as error:
        check_want(error)
        return Remembered()
    holders = sum(entry.ResourceName == resource for entry in found.PodDeviceEntries or ())
    return Remembered(resource in (found.RegisteredDevices or {}), holders)


class EpcInNodeStatus(InApi[NodeStatus, EpcAmount]):
    """The amount of EPC in the node's status, or with `withdrawn` that there is none, and the labels."""

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
        self._publisher = publisher
        self._withdrawn = withdrawn
        self._asked = False
        self._held_back = ""
        super().__init__("node status", units.name, units, node, publisher.watch, config, observe)

    def _offer(self) -> EpcAmount:
        amount = EpcAmount.of(self._resource, self._units.pool(self._node), healthy=not self._node.obstacles)
        held_back = self._withdrawn or self._held_back or not self._asked
        return replace(amount, units=None) if held_back else amount

    async def _repair(self, state: NodeStatus) -> bool:
        wanted = self._wanted
        if (patch := wanted.patch_for(state)) is None:
            return False
        await self._publisher.patch(patch)
        self._report("epc.published", outcome="published", units=wanted.units, true_mib=wanted.true_mib)
        return True

    async def _watch_kubelet(self) -> None:
        while not self._withdrawn:
            reason = await self._why_held_back()
            if reason != self._held_back:
                self._report("epc.held_back", warning=bool(reason), reason=reason)
            self._asked, self._held_back = True, reason
            self._update()
            await asyncio.sleep(self._config.health_interval)

    async def _why_held_back(self) -> str:
        """Why the kubelet would fail pods that got the amount now; empty when it would not."""
        resource = self._resource
        try:
            found = await asyncio.to_thread(remembered, Path(self._config.plugin_dir), resource)
            held = (await held_devices(self._config, resource))[0] if found.holders else {}
        except ConfcomError as error:
            return f"the kubelet does not say who holds {resource} as devices: {error.message}"
        if held:
            return f"{len(held)} containers hold {resource} as devices of an earlier plugin, until they end"
        if found.registered:
            return f"the kubelet keeps {resource} as devices of an earlier plugin, for five minutes after its end"
        return ""


_Found = Mapping[str, Mapping[str, Any]]


class DevicesInApi(InApi[_Found, tuple[SharedDevice, ...]]):
    """The node's ResourceSlice, with its devices less what pods of another publisher still hold.

    The kubelet deletes the slice when it starts, so it is watched and repaired. Devices that cannot be shared
    would give a whole NUMA node to the first claim: an API server that drops what allows sharing (before 1.36, or with
    DRAConsumableCapacity off) therefore gets no slice at all, and the log says why.

    The kubelet says which devices of 1 MiB pods hold, but not how much EPC in the node's status they have: as long as
    there are such pods, known by their enclave device, no EPC is offered. Nor is any before the kubelet answers.
    """

    def __init__(
        self,
        devices: DraDevices,
        units: EpcUnits,
        node: SgxNode,
        slices: KubeResourceSlices,
        config: DevicePluginConfig,
        observe: Observer,
    ) -> None:
        self._devices = devices
        self._slices = slices
        self._generation = 0
        self._held: Mapping[int | None, int] = {}
        self._held_back = "the kubelet has not said yet who holds EPC"
        super().__init__("resource slice", DRA_DRIVER, units, node, slices.watch, config, observe)

    def _offer(self) -> tuple[SharedDevice, ...]:
        pool = self._units.pool(self._node)
        held = {one.numa_node: one.units for one in pool.sections} if self._held_back else self._held
        return self._devices.offered(pool.without(held), self._node)

    async def _repair(self, state: _Found) -> bool:
        """One slice with the wanted devices, and no other slice of this driver on this node."""
        name = slice_name(self._config.node_name)
        others = [other for other in state if other != name]
        for other in others:
            await self._slices.delete(other)
        present = state.get(name)
        self._generation = max([self._generation, *map(slice_generation, state.values())])
        wanted = resource_slice(self._config.node_name, self._wanted, generation=self._generation)
        if present is not None and slice_devices(present) == slice_devices(wanted):
            return bool(others)
        await self._write(name, present)
        return True

    async def _write(self, name: str, present: Mapping[str, Any] | None) -> None:
        self._generation += 1
        owner = await self._slices.owner()
        wanted = resource_slice(self._config.node_name, self._wanted, generation=self._generation, owner=owner)
        written = await self._slices.write(wanted, present)
        if lost_sharing(written):
            await self._slices.delete(name)
            raise PlatformUnavailable(
                "the API server does not know devices that claims share, so a claim would get a whole NUMA node",
                retryable=True,
                advice="Kubernetes 1.36 or later has the feature (DRAConsumableCapacity); or choose another publisher.",
            )
        self._report("epc.published", outcome="published", devices=len(self._wanted), generation=self._generation)

    async def _watch_kubelet(self) -> None:
        """Until nothing is held any more: new pods cannot get EPC but by claims."""
        while self._held or self._held_back:
            before = self._held, self._held_back
            await self._look()
            if (self._held, self._held_back) != before:
                units, reason = sum(self._held.values()), self._held_back
                self._report("epc.held_back", warning=bool(reason), reason=reason, units=units)
                self._update()
            await asyncio.sleep(self._config.health_interval)

    async def _look(self) -> None:
        config = self._config
        try:
            units, enclaves = await held_devices(config, config.resource, config.enclave_resource)
        except ConfcomError as error:
            self._held_back = f"the kubelet does not say who holds EPC: {error.message}"
            return
        nodes = {section.numa_node for section in self._units.pool(self._node).sections}
        ours = {
            one: ids for one, ids in units.items() if all(is_unit(unit) and numa_node_of(unit) in nodes for unit in ids)
        }
        others = len((enclaves.keys() | units.keys()) - ours.keys())
        self._held = Counter(numa_node_of(unit) for ids in ours.values() for unit in ids)
        self._held_back = f"{others} containers hold EPC of another publisher, until they end" if others else ""
