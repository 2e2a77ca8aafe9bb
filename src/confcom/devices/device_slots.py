"""A device that any number of containers may share, offered to a fixed number of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confcom.devices.host import Host
from confcom.devices.interface import Inventory
from confcom.devices.sgx_driver import DriverDevice
from confcom.devices.sgx_node import SgxNode
from confcom.protocols.kubelet import ContainerAllocation, Device


@dataclass(frozen=True, slots=True)
class DeviceSlots:
    """A DeviceResource of `count` slots for one device. `find` raises `PlatformUnavailable` when it is not there."""

    host: Host
    name: str
    endpoint: str
    count: int
    find: Callable[[SgxNode], DriverDevice]
    why_missing: Callable[[SgxNode], str]
    guarded: bool = False
    prefers: bool = False
    essential: bool = True

    def inventory(self, node: SgxNode) -> Inventory:
        """The slots, all of them as healthy as the device."""
        reason = self.why_missing(node)
        return Inventory(slots(self.endpoint, self.count, reason), node, reason)

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
        """Any will do."""
        return any_of(available, must_include, size)

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocation:
        """The one device, under its names; more than one slot brings no more."""
        del ids
        device = self.find(inventory.node)
        return ContainerAllocation(devices=device.nodes(self.host), mounts=device.mounts(self.host))


def slots(word: str, count: int, reason: str) -> tuple[Device, ...]:
    """As many devices, all of them healthy unless there is a reason why not."""
    return tuple(Device(f"{word}-{number}", not reason) for number in range(count))


def any_of(available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
    """The first ids that are available, and those that must be among them."""
    return tuple(dict.fromkeys([*must_include, *available]))[: max(size, len(must_include))]
