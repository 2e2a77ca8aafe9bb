"""EPC as an amount in the node's status: what the status should say, the patch if it differs, and when it must wait.

The kubelet makes `allocatable` equal to `capacity` for resources that it does not know itself, so both say what may be
requested: reserve subtracted, overcommit applied. The true size is a label.

A node that published EPC as devices before cannot offer it as an amount at once: the kubelet keeps the resource for
five minutes after its plugin has gone, longer while a pod holds devices, and fails pods that request it ("no healthy
devices present"). Its checkpoint shows that, and nothing else does (Kubernetes 1.36, cm/devicemanager).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from confcom.devices.epc import EpcPool
from confcom.errors import FormatError
from confcom.protocols.epc import BOOT_ANNOTATION, OVERCOMMIT_LABEL, TRUE_SIZE_LABEL, NodeStatus, parse_quantity


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
MAX_SIZE = 64 << 20
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
    path = directory / CHECKPOINT
    try:
        if path.stat().st_size > MAX_SIZE:
            return Remembered()
        found = _CHECKPOINT.decode(path.read_bytes()).Data
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Remembered()
    holders = sum(entry.ResourceName == resource for entry in found.PodDeviceEntries or ())
    return Remembered(resource in (found.RegisteredDevices or {}), holders)
