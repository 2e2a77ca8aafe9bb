"""Keeps the node's ResourceSlice in the API: the kubelet deletes it when it starts, and anybody may by mistake.

A slice whose devices cannot be shared would give a whole NUMA node to the first claim. An API server that drops what
allows sharing (before 1.36, or with DRAConsumableCapacity off) therefore gets no slice at all, and the log says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confcom.devices.interface import ResourceSlices
from confcom.errors import PlatformUnavailable
from confcom.protocols.dra_objects import (
    DRIVER,
    SharedDevice,
    lost_sharing,
    resource_slice,
    slice_devices,
    slice_generation,
    slice_name,
)
from confcom.services.device_plugin_events import Observer, PluginEvent
from confcom.services.reconciler import Reconciler

_Found = Mapping[str, Mapping[str, Any]]


class SliceReconciler:
    """One slice with the wanted devices, and no other slice of this driver on this node."""

    def __init__(
        self,
        slices: ResourceSlices,
        node: str,
        devices: tuple[SharedDevice, ...],
        observe: Observer,
        *,
        settle: float,
    ) -> None:
        self._slices = slices
        self._node = node
        self._devices = devices
        self._observe = observe
        self._generation = 0
        self._reconciler: Reconciler[_Found] = Reconciler(slices.watch, self._repair, self._failed, settle=settle)

    @property
    def trouble(self) -> str:
        """Why claims may not find the devices, as a clause; empty when the slice is there."""
        return self._reconciler.trouble

    def update(self, devices: tuple[SharedDevice, ...]) -> None:
        """Want other devices from now on."""
        if devices != self._devices:
            self._devices = devices
            self._reconciler.wake()

    async def run(self) -> None:
        """For ever; failures are told and tried again."""
        await self._reconciler.run()

    async def _repair(self, found: _Found) -> bool:
        name = slice_name(self._node)
        strangers = [other for other in found if other != name]
        for other in strangers:
            await self._slices.delete(other)
        present = found.get(name)
        self._generation = max([self._generation, *map(slice_generation, found.values())])
        wanted = resource_slice(self._node, self._devices, generation=self._generation)
        if present is not None and slice_devices(present) == slice_devices(wanted):
            return bool(strangers)
        await self._write(present)
        return True

    async def _write(self, present: Mapping[str, Any] | None) -> None:
        self._generation += 1
        wanted = resource_slice(
            self._node, self._devices, generation=self._generation, owner=await self._slices.owner()
        )
        written = await self._slices.write(wanted, present)
        if lost_sharing(written):
            await self._slices.delete(slice_name(self._node))
            raise PlatformUnavailable(
                "the API server does not know devices that claims share, so a claim would get a whole NUMA node",
                retryable=True,
                advice="Kubernetes 1.36 or later has the feature (DRAConsumableCapacity); or choose another publisher.",
            )
        fields = {"outcome": "published", "devices": len(self._devices), "generation": self._generation}
        self._observe(PluginEvent("epc.published", DRIVER, fields))

    def _failed(self, reason: str) -> None:
        fields = {"outcome": "failed", "reason": reason}
        self._observe(PluginEvent("epc.published", DRIVER, fields, trouble=True))
